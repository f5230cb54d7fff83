"""Counts against published figures and against brute force."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import experiment as experiments
from lmjax.experiment import DataConfig
from lmjax.models import zoo
from lmjax.models.config import Span
from lmjax.models.lora import LoRA
from lmjax.models.positions import Rotary
from lmjax.models.transformer import abstract_params, hidden
from lmjax.plan import counts, published, scaling
from lmjax.plan.compiled import abstract_batch
from lmjax.plan.counts import PETAFLOP_DAY, flops_per_token, three_digits
from lmjax.sharding import Mesh, build_mesh
from lmjax.tasks.classification import Classification
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tasks.span_qa import SpanQA
from lmjax.train.step import grads_and_loss
from lmjax.trained import split
from lmjax.trees import count
from tests import tiny

GPT3_FILES = ["125m", "350m", "760m", "1_3b", "2_7b", "6_7b", "13b", "175b"]


def test_flops_per_token_equal_nanogpts_notebook():
    """transformer_sizing.ipynb: 854,553,600 a token for GPT-2 124M without biases, its position table not counted."""
    cfg = zoo.nanogpt(vocab=50_257)
    assert counts.used_params(cfg) == 123_551_232
    assert flops_per_token(cfg) == 854_553_600
    assert 1024 * flops_per_token(cfg) == 875_062_886_400


@pytest.mark.parametrize(("file", "n"), list(zip(GPT3_FILES, published.GPT3, strict=True)))
def test_gpt3_sizes_are_exact_and_give_the_papers_digits(file, n):
    """Table D.1: C = 6 N 300e9, from the paper's rounded N to all its digits, from the exact N to one in the third."""
    experiment = experiments.load(f"experiments/gpt3_{file}.py", [])
    _, millions, flops, days = published.GPT3[n]
    assert counts.params(experiment.model) == n == sum(counts.params_by_part(experiment.model).values())
    assert experiment.tokens == pytest.approx(300e9, rel=1e-5)
    rounded = 6 * float(millions.replace(",", "")) * 1e6 * 300e9
    assert three_digits(rounded) == flops
    assert three_digits(rounded / PETAFLOP_DAY) == days
    exact = 6 * n * experiment.tokens
    # the paper's three digits, and N rounded to three more
    assert exact == pytest.approx(float(flops), rel=7e-3)
    assert exact / PETAFLOP_DAY == pytest.approx(float(days.replace(",", "")), rel=7e-3)
    assert any(flops in line and days in line for line in published.beside(experiment.model))


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama, tiny.gemma, tiny.neox, tiny.mixtral, tiny.t5])
def test_parts_add_up_to_all_parameters(make):
    cfg = make()
    assert sum(counts.params_by_part(cfg).values()) == counts.params(cfg) == count(abstract_params(cfg))


def test_heads_are_what_is_not_in_the_blocks():
    cfg = tiny.bert(outputs=3)
    heads = (cfg.width**2 + cfg.width) + (cfg.vocab + cfg.width**2 + 3 * cfg.width) + (3 * cfg.width + 3)
    assert counts.params_by_part(cfg)["heads"] == heads


def test_an_encoders_parts_are_counted_with_the_decoders():
    cfg = tiny.t5()
    parts, matrix = counts.params_by_part(cfg), cfg.width * cfg.heads * cfg.head_width
    assert parts["attention"] == 4 * matrix * (2 * cfg.layers + cfg.encoder_layers)
    assert parts["feed-forward"] == 3 * cfg.width * cfg.hidden * (cfg.layers + cfg.encoder_layers)
    assert parts["positions"] == 2 * cfg.positions.buckets * cfg.heads


def test_a_mixture_counts_the_experts_that_a_token_uses():
    cfg = tiny.mixtral()
    one = replace(cfg, feedforward=replace(cfg.feedforward, count=cfg.feedforward.chosen))
    unused_rows_of_the_router = cfg.layers * cfg.width * (cfg.feedforward.count - cfg.feedforward.chosen)
    assert counts.used_params(cfg) == counts.params(one) + unused_rows_of_the_router


@pytest.mark.parametrize("window", [None, 1, 7, 32, 1000])
def test_attention_counts_the_pairs_that_see_each_other(window):
    cfg = tiny.gpt2(pattern=(Span(), Span(window=window)))
    T = cfg.context
    distance = np.arange(T)[:, None] - np.arange(T)
    pairs = sum(((distance >= 0) & (distance < (w or T))).sum() for w in (None, window)) / 2
    forward_and_backward = 3 * 2 * 2 * cfg.layers * cfg.heads * cfg.head_width * pairs / T
    # the mean place of a row has half a token more than the formula's mean
    assert counts.work_per_token(cfg).attention == pytest.approx(forward_and_backward)


def test_work_is_what_the_compiler_counts():
    """Products of a step without a loop, which XLA's count would see once."""
    cfg = tiny.llama(layers=1, vocab=512, width=128, heads=4, kv_heads=2, context=64)
    experiment = tiny.experiment("unused", model=cfg, batch_size=4, microbatches=1)
    flops = compiled_flops(experiment)
    work = counts.work_per_token(cfg)
    assert 0.9 < (work.products + 2 * work.attention) / flops < 1.0


@pytest.mark.parametrize("source_length", [16, 96])
def test_the_work_of_two_stacks_is_what_the_compiler_counts(source_length):
    """A source shorter than the target, and longer."""
    cfg = tiny.t5(layers=1, encoder_layers=1, vocab=512, width=128, heads=4, context=96, positions=Rotary())
    data = DataConfig(length=64, source_length=source_length)
    experiment = tiny.experiment("unused", model=cfg, batch_size=4, microbatches=1, task=Seq2Seq(), data=data)
    work = counts.work_per_token(experiment.model_of_rows, source_length)
    # the decoder's kernel multiplies the whole square, of which causal attention needs half
    causal = 3 * 2 * cfg.heads * cfg.head_width * 64
    assert 0.9 < (work.total + causal) / compiled_flops(experiment) < 1.0
    assert counts.flops_per_token(experiment.model_of_rows, source_length) == pytest.approx(
        work.total + causal + 6 * (512 * 128), rel=2e-3
    )


def compiled_flops(experiment) -> float:
    """Of a token, forward and backward, as XLA counts them."""
    trained, frozen = jax.eval_shape(partial(split, experiment), abstract_params(experiment.model))
    run = jax.jit(lambda p, f, b: grads_and_loss(experiment, p, f, b, jax.random.key(0)))
    mesh = build_mesh(Mesh(), jax.devices()[:1])
    program = run.lower(trained, frozen, abstract_batch(experiment, mesh)).compile()
    return program.cost_analysis()["flops"] / experiment.tokens_per_step


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": ("blocks/feedforward/*", "unembedding")},
        {"adapter": LoRA(rank=1, train=("embedding",)), "init_from": "base"},
    ],
)
def test_freezing_saves_what_the_compiler_saves(changes):
    cfg = tiny.llama(layers=1, vocab=512, width=128, heads=4, kv_heads=2, context=64)
    whole = tiny.experiment("unused", model=cfg, batch_size=4, microbatches=1)
    part = replace(whole, **changes)
    saved = compiled_flops(whole) - compiled_flops(part)
    assert 2 * counts.passed_by(part) == pytest.approx(saved, rel=0.1)
    assert counts.trained_flops_per_token(whole) == counts.flops_per_token(cfg)


def test_places_that_are_not_predicted_save_what_the_compiler_saves():
    cfg = tiny.bert(layers=1, vocab=512, width=128, heads=4, context=64, pooler=False)
    few, many = (
        tiny.experiment("unused", model=cfg, batch_size=4, microbatches=1, task=MaskedLM(share=share))
        for share in (0.125, 0.75)
    )
    saved = compiled_flops(many) - compiled_flops(few)
    assert 6 * (counts.unpredicted(few) - counts.unpredicted(many)) == pytest.approx(saved, rel=0.1)
    assert counts.trained_flops_per_token(few) == counts.flops_per_token(cfg) - 6 * counts.unpredicted(few)


@pytest.mark.parametrize(("task", "frozen"), [(Classification(labels=("a", "b")), ()), (SpanQA(), ("embedding",))])
def test_labels_and_spans_have_no_vocabulary_at_work(task, frozen):
    cfg = tiny.bert(
        layers=1, vocab=5_000, width=128, heads=4, context=64, pooler=False, masked_head=None, outputs=2
    )  # fmt: skip
    experiment = tiny.experiment("unused", model=cfg, batch_size=4, microbatches=1, task=task, freeze=frozen)
    work = counts.work_per_token(cfg).total - 6 * counts.unpredicted(experiment) - 2 * counts.passed_by(experiment)
    assert 0.85 < work / compiled_flops(experiment) < 1.0


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (3.142e23, "3.14e23"),
        (3637.6, "3,640"),
        (268.4, "268"),
        (27.46, "27.5"),
        (2.6, "2.60"),
        (0.0512, "0.0512"),
        (0, "0"),
    ],
)
def test_three_digits(number, text):
    assert three_digits(number) == text


def test_chinchilla_is_the_minimum_of_its_own_formula():
    fit = scaling.CHINCHILLA
    assert fit.loss(70e9, 1.4e12) == pytest.approx(1.9366, abs=5e-5)
    for flops in (1e18, 1e21, 5.76e23):
        n, d = fit.best(flops)
        assert 6 * n * d == pytest.approx(flops)
        sizes = n * np.exp(np.linspace(-2, 2, 4001))
        losses = fit.E + fit.A / sizes**fit.alpha + fit.B / (flops / 6 / sizes) ** fit.beta
        assert sizes[np.argmin(losses)] == pytest.approx(n, rel=2e-3)


@pytest.mark.parametrize("model", [tiny.gpt2, tiny.llama], ids=["gpt2", "llama"])
@pytest.mark.parametrize("remat", ["products", "attention", "everything"])
def test_kept_activations_are_what_the_backward_pass_gets(model, remat):
    """The numbers that JAX hands from the forward to the backward pass, by what two more layers add to them."""
    shape = {"width": 128, "heads": 2, "kv_heads": 2, "context": 80, "remat": remat, "qk_norm": False}

    def handed_on(layers: int) -> int:
        cfg = model(layers=layers, **shape)
        tokens = jax.ShapeDtypeStruct((4, 80), jnp.int32)
        back = jax.eval_shape(
            lambda params, tokens: jax.vjp(lambda p: hidden(cfg, p, tokens, tokens)[0], params)[1],
            abstract_params(cfg), tokens,
        )  # fmt: skip
        # (L, B, T, ...); the weights of the layers stand among them
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back) if x.ndim > 2 and x.shape[1:3] == (4, 80))

    experiment = tiny.experiment("unused", model=model(layers=2, **shape), batch_size=4, microbatches=1)
    assert counts.kept_activations(experiment) == pytest.approx(handed_on(4) - handed_on(2), rel=0.02)
