"""init_from with other heads: the body keeps its bits, what is new is as in a model from nothing, and both are said."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lmjax.data.records import Table
from lmjax.errors import UserError
from lmjax.experiment import DataConfig
from lmjax.inherited import Origin, check_trained
from lmjax.interop.write import export
from lmjax.loaded import load_model
from lmjax.models import transformer
from lmjax.models.lora import LoRA
from lmjax.models.positions import Learned
from lmjax.optim import AdamW, Constant
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from lmjax.tokenizers import Bytes, HuggingFace
from lmjax.train import loop
from lmjax.trees import named_leaves
from tests import tiny
from tests.tasks.test_classification import table

TOKENIZER = Bytes(bos=True, eos=True)
DECODER = tiny.llama(vocab=None, layers=1, width=16, context=24)
ENCODER = tiny.bert(vocab=258, layers=1, width=16, context=24, positions=Learned())
LABELS = replace(ENCODER, masked_head=None)


def labelling(path, model, **changes):
    """Steps so small that they move nothing: what was taken over is there after training as it was."""
    source = Table(path=str(path / "train.tsv"), columns=("text", "label"))
    fields = {
        "task": Classification(), "data": DataConfig(source=source), "model": model, "tokenizer": TOKENIZER, "steps": 1,
        "schedule": Constant(peak=1e-60), "optimizer": AdamW(weight_decay=0.0), "evaluate_every": 1, "seed": 5,
    }  # fmt: skip
    return tiny.experiment(path, **fields | changes)


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The directory of a run of next tokens, "decoder", and Hugging Face's of an encoder with a masked head, "encoder"."""
    place = tmp_path_factory.mktemp("begun")
    (place / "train.tsv").write_text(table(200, 0))
    (place / "text.txt").write_text(tiny.text(4000), encoding="utf-8")
    loop.train(tiny.experiment(place / "text.txt", model=DECODER, tokenizer=TOKENIZER, steps=2), place / "decoder")
    params = transformer.init_params(ENCODER, jax.random.key(1))
    export(ENCODER, params, TOKENIZER.build(list), place / "encoder")
    return place, {"decoder": load_model(place / "decoder").params, "encoder": params}


def assert_taken(model, found, before, new):
    """All bits of the other model's, but what is new, which is as the seed has it."""
    fresh = dict(named_leaves(transformer.init_params(replace(model, vocab=258, outputs=2), jax.random.key(5))))
    before, found = dict(named_leaves(before)), dict(named_leaves(found))
    assert {path.split("/")[0] for path in found if path not in before} == new
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, before[path] if path in before else fresh[path], err_msg=path)


@pytest.mark.parametrize(
    ("name", "model", "new", "line"),
    [
        ("decoder", DECODER, {"outputs"}, "; new: the layer of its task\n"),
        (
            "decoder", replace(DECODER, tied=True), {"outputs"},
            "; new: the layer of its task; not taken over: the matrix of the output\n",
        ),
        ("encoder", LABELS, {"outputs"}, "; new: the layer of its task; not taken over: the head of masked tokens\n"),
        (
            "encoder", replace(LABELS, pooler=False), {"outputs"},
            "; new: the layer of its task; not taken over: the pooler, the head of masked tokens\n",
        ),
    ],
)  # fmt: skip
def test_the_body_is_taken_over_bit_by_bit(name, model, new, line, begun, tmp_path, capsys):
    place, params = begun
    kind = TOKENIZER if name == "decoder" else HuggingFace(path=str(place / name))
    loop.train(labelling(place, model, init_from=str(place / name), tokenizer=kind), tmp_path / "run")
    assert f"begins with {place / name}{line}" in capsys.readouterr().out
    assert_taken(model, load_model(tmp_path / "run").params, params[name], new)


def test_a_head_for_the_same_labels_is_taken_over_and_another_is_new(begun, tmp_path, capsys):
    place, _ = begun
    loop.train(labelling(place, LABELS), tmp_path / "one")
    before = load_model(tmp_path / "one").params
    capsys.readouterr()
    loop.train(labelling(place, LABELS, init_from=str(tmp_path / "one"), seed=6), tmp_path / "two")
    assert f"begins with {tmp_path / 'one'}\n" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "two").params, before)
    # the same number of labels by other names
    rows = (place / "train.tsv").read_text().replace("good", "fine")
    (tmp_path / "train.tsv").write_text(rows)
    loop.train(labelling(tmp_path, LABELS, init_from=str(tmp_path / "one")), tmp_path / "three")
    said = f"begins with {tmp_path / 'one'}; new: the layer of its task; not taken over: the layer of its task\n"
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "three" / "experiment.json").read_text())["task"]["labels"] == ["bad", "fine"]


def test_an_adapter_needs_the_new_head_among_what_it_trains(begun, tmp_path):
    place, params = begun
    lora = LoRA(rank=2, weights=("blocks/attention/*/kernel",))
    exp = labelling(place, DECODER, init_from=str(place / "decoder"), adapter=lora)
    with pytest.raises(UserError, match=r"new, and no adapter has it: expected adapter.train to name outputs/\*"):
        loop.train(exp, tmp_path / "run")
    untied = tiny.gpt2(tied=False)
    outputs = replace(exp, task=CausalLM(), model=untied, adapter=replace(lora, train=("unembedding",)))
    tied = Origin(tmp_path, replace(untied, tied=True), None, None)
    check_trained(outputs, tied)
    with pytest.raises(UserError, match="the matrix of the output is new, .* adapter.train to name unembedding"):
        check_trained(replace(outputs, adapter=lora), tied)
    exp = replace(exp, adapter=replace(lora, train=("outputs/*",)))
    loop.train(exp, tmp_path / "run")
    assert_taken(DECODER, load_model(tmp_path / "run").params, params["decoder"], {"outputs"})
    # gone on with from the same base, to the same bits as without a stop
    moving = replace(exp, schedule=Constant(peak=1e-2))
    for name, steps in (("whole", (3,)), ("parts", (1, 3))):
        for until in steps:
            loop.train(replace(moving, steps=until), tmp_path / name)
    whole, in_parts = (load_model(tmp_path / name).params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, in_parts)
    assert (
        whole["outputs"]["dense"]["kernel"] != load_model(tmp_path / "run").params["outputs"]["dense"]["kernel"]
    ).all()


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("decoder", replace(DECODER, width=32, heads=4), "is another model: model.width: 16 -> 32"),
        ("encoder", replace(LABELS, token_types=1), "is another model: model.token_types: 2 -> 1"),
        ("encoder", replace(LABELS, causal=True, pooler=False), "is another model: model.causal: False -> True"),
    ],
)
def test_another_body_is_one_line(name, model, message, begun, tmp_path):
    place, _ = begun
    kind = TOKENIZER if name == "decoder" else HuggingFace(path=str(place / name))
    with pytest.raises(UserError, match=message):
        loop.train(labelling(place, model, init_from=str(place / name), tokenizer=kind), tmp_path / "run")
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_next_tokens_need_the_matrix_of_the_output(begun, tmp_path):
    place, _ = begun
    exp = tiny.experiment(
        place / "text.txt", model=replace(DECODER, tied=True), tokenizer=TOKENIZER, init_from=str(place / "decoder")
    )
    with pytest.raises(UserError, match="is another model: model.tied: False -> True"):
        loop.train(exp, tmp_path / "run")
