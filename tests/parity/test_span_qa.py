"""The loss of answers as spans, and its gradient, beside transformers' BertForQuestionAnswering with the same weights."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import torch
import transformers

from lmjax.data.batch import Batch
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.tasks.span_qa import END, START, SpanQA
from tests.parity.test_encoders import SETTINGS


def theirs(directory):
    """An encoder is saved with the heads that we can read; the one for spans is made upon it."""
    config = transformers.BertConfig(**SETTINGS, type_vocab_size=2, attn_implementation="eager")
    torch.manual_seed(5)
    whole = transformers.BertForPreTraining(config)
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(0.3 * torch.randn(weight.shape) / weight.shape[-1] ** 0.5)
    whole.eval().save_pretrained(directory)
    model = transformers.BertForQuestionAnswering(config).eval()
    model.bert.load_state_dict(whole.bert.state_dict(), strict=False)
    torch.nn.init.normal_(model.qa_outputs.weight)
    torch.nn.init.normal_(model.qa_outputs.bias)
    return model


def test_loss_and_gradient(tmp_path):
    model, rng = theirs(tmp_path), np.random.default_rng(3)
    B, T = 3, 40
    # no padding: there its softmax would go over padding too
    ids_BT, types_BT = (
        rng.integers(4, 97, (B, T)).astype(np.int32),
        np.tile(np.arange(T) >= 12, (B, 1)).astype(np.int32),
    )
    first_B, last_B = np.array([0, 14, 20]), np.array([0, 14, 27])
    inputs = {"input_ids": ids_BT, "token_type_ids": types_BT, "start_positions": first_B, "end_positions": last_B}
    out = model(**{name: torch.tensor(np.asarray(x, np.int64)) for name, x in inputs.items()})
    out.loss.backward()

    found = open_checkpoint(tmp_path)
    cfg = replace(found.cfg, masked_head=None, pooler=False, outputs=2)
    params = {
        name: part for name, part in load_params(found, stacked=True).items() if name not in ("masked_head", "pooler")
    }
    head = {"kernel": model.qa_outputs.weight.detach().numpy().T, "bias": model.qa_outputs.bias.detach().numpy()}
    params["outputs"] = {"dense": head}
    targets_BT, weights_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.float32)
    for row in range(B):
        for place, flag in ((first_B[row], START), (last_B[row], END)):
            targets_BT[row, place] |= flag
            weights_BT[row, place] += 0.5
    places_BT = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    batch = Batch(ids_BT, places_BT, np.ones((B, T), np.int32), targets_BT, weights_BT, types_BT)
    task = SpanQA()
    logits_BTC = np.asarray(jax.jit(partial(task.logits, cfg))(params, batch))
    expected = np.stack([out.start_logits.detach().numpy(), out.end_logits.detach().numpy()], axis=-1)
    assert np.abs(expected).max() > 2
    np.testing.assert_allclose(logits_BTC, expected, atol=1e-5 * np.abs(expected).max())
    mean = lambda params: task.training_loss(cfg, params, batch, None).mean()
    loss, grads = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    for ours, weight in (
        (grads["outputs"]["dense"]["kernel"].T, model.qa_outputs.weight),
        (grads["embedding"], model.bert.embeddings.word_embeddings.weight),
    ):
        reference = weight.grad.numpy()
        np.testing.assert_allclose(ours, reference, atol=1e-4 * np.abs(reference).max())
