"""Masked language modelling: the mask a function of (seed, row), its proportions, a loss of what is hidden and nothing
else, packed = apart, and a run from text to figures."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import run as command_line
from lmjax.data.batches import Batches
from lmjax.data.sources import TextFiles
from lmjax.data.store import stream_of
from lmjax.data.windows import Windows
from lmjax.errors import UserError
from lmjax.evaluate.held_out import compile_loss, held_out
from lmjax.experiment import DataConfig
from lmjax.models import transformer
from lmjax.models.feedforward import Experts
from lmjax.plan.compiled import abstract_batch
from lmjax.plan.devices import of_this_machine
from lmjax.plan.planning import plan_on
from lmjax.plan.remedies import changes
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.tasks import loss as losses
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from tests import reference, tiny
from tests.one_device import on_one_device
from tests.train import test_resume as resume

TASK = MaskedLM()
TOKENIZER = Bytes(bos=True, eos=True, mask=True).build(list)
MASK = 258
CFG = tiny.bert(vocab=259, pooler=False, token_types=0)


def stream(*lengths):
    """Documents of letters; BOS and EOS stand around each."""
    return stream_of([tiny.text(length, seed) for seed, length in enumerate(lengths)], TOKENIZER)


def windows(*lengths, length=32, apart=False):
    return Windows(stream(*lengths), length, apart, ahead=0)


def hidden(read, rows=4, seed=0, task=TASK):
    """All windows once, with tokens hidden."""
    change = task.change(TOKENIZER, seed)
    return [change(batch, i * rows + np.arange(rows)) for i, batch in enumerate(read.in_order(rows))]


@partial(jax.jit, static_argnums=0)
def held_out_loss(cfg, params, batch):
    return TASK.held_out_loss(cfg, params, batch)


def joined(batches):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


@pytest.mark.parametrize(("sizes", "length"), [((50,), 7), ((3, 30, 8), 16), ((14,), 16), ((40, 22), 64)])
def test_windows_of_the_tokens_themselves_have_each_once(sizes, length):
    read = windows(*sizes, length=length)
    batch = joined(read.in_order(3))
    inside = batch.segments_BT > 0
    assert batch.targets_BT[inside].tolist() == batch.tokens_BT[inside].tolist() == read.stream.shards[0].tolist()
    # BOS is never predicted; what lies beyond the text is nothing
    assert (batch.weights_BT[inside] == (batch.tokens_BT[inside] != 256)).all()
    assert not batch.weights_BT[~inside].any() and read.text_bytes is None
    apart = joined(replace(read, apart=True).in_order(3))
    assert ((apart.segments_BT > 0) == inside).all()
    assert (np.diff(apart.segments_BT)[apart.tokens_BT[:, 1:] == 256] == 1).all()


def test_what_is_hidden_counts_and_nothing_else():
    before, after = joined(windows(900, 5, 3).in_order(4)), joined(hidden(windows(900, 5, 3)))
    chosen = after.weights_BT > 0
    assert (after.tokens_BT[~chosen] == before.tokens_BT[~chosen]).all()
    assert (after.targets_BT == before.targets_BT).all()
    assert not np.isin(after.targets_BT[chosen], [256, 257, 258]).any()
    assert not np.isin(after.tokens_BT[chosen], [256, 257]).any()
    # round(0.15 n), at least one, of the n tokens of a row that may be hidden
    may = (before.weights_BT > 0) & ~np.isin(before.tokens_BT, [256, 257])
    assert chosen.sum(1).tolist() == [min(n, max(1, round(0.15 * n))) for n in may.sum(1)]
    assert set(chosen.sum(1)) >= {0, 5}


def test_shares_are_those_that_are_asked_for():
    """Of 15 % of 300,000 tokens, within four standard deviations; every place and every other token alike."""
    rng = np.random.default_rng(0)
    text = bytes(rng.integers(97, 101, 307_200).astype(np.uint8)).decode()
    batch = hidden(Windows(stream_of([text], Bytes(mask=True).build(list)), 256, False, ahead=0), rows=1200)[0]
    chosen = batch.weights_BT > 0
    n = int(chosen.sum())
    assert n == 1200 * round(0.15 * 256)
    read, own = batch.tokens_BT[chosen], batch.targets_BT[chosen]
    for share, found in ((0.8, read == MASK), (0.1 * 255 / 256, (read != MASK) & (read != own))):
        assert abs(found.mean() - share) < 4 * (share * (1 - share) / n) ** 0.5
    # the rest was kept, but for the random tokens that fell on their own
    kept = (0.1 + 0.1 / 256, read == own)
    assert abs(kept[1].mean() - kept[0]) < 4 * (kept[0] * (1 - kept[0]) / n) ** 0.5
    others = np.bincount(read[(read != MASK) & (read != own)], minlength=259)
    assert not others[256:].any()
    # chi-squared of 256 cells: 255 with a standard deviation of 22.6
    expected = others.sum() / 256
    assert abs((((others[:256] - expected) ** 2) / expected).sum() - 255) < 4 * 22.6
    by_place = chosen.sum(0)
    assert abs((((by_place - n / 256) ** 2) / (n / 256 * (1 - 38 / 256))).sum() - 255) < 4 * 22.6


def test_a_mask_follows_from_the_seed_the_step_and_the_row():
    def batches(seed=0):
        return Batches([(windows(3000), 1.0)], rows=6, seed=5, change=TASK.change(TOKENIZER, seed))

    one, again = batches(), batches()
    for step in (90, 3, 41):
        jax.tree.map(np.testing.assert_array_equal, one[step], again[step])
        some = np.array([1, 4])
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[some], y), one[step], again.part(step, some))
    assert (one[3].weights_BT != batches(seed=1)[3].weights_BT).any()
    # of the same window another mask in every pass
    first = next(iter(windows(3000).in_order(1)))
    change = TASK.change(TOKENIZER, 0)
    masks = [change(first, np.array([row])).weights_BT.tobytes() for row in range(50)]
    assert len(set(masks)) == 50


def logits64(cfg, params, batch):
    """(B, T, V) in float64 from the hidden vectors on, which are beside transformers' in tests/parity."""
    run = jax.jit(partial(transformer.hidden, cfg))
    hidden_BTD, _ = run(params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    x, p = np.asarray(hidden_BTD, np.float64), jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    if not cfg.masked_head:
        return x @ p["embedding"].T
    head = p["masked_head"]
    x = reference.normalise(reference.ACTIVATIONS["gelu"](reference.linear(x, head["dense"])), head["norm"], cfg.norm)
    return x @ p["embedding"].T + head["bias"]


@pytest.mark.parametrize(("head", "apart"), [("gelu", False), (None, True)])
def test_loss_is_that_of_the_hidden_tokens_in_float64(apart, head):
    cfg = replace(CFG, masked_head=head)
    params = transformer.init_params(cfg, jax.random.key(0))
    if head:
        params["masked_head"]["bias"] = jax.random.normal(jax.random.key(1), (259,))
    (batch,) = hidden(windows(40, 30, apart=apart))
    nats, right, logits_BTV = 0.0, 0, logits64(cfg, params, batch)
    for row, place in zip(*np.nonzero(batch.weights_BT), strict=True):
        nats -= np.log(reference.softmax(logits_BTV[row, place])[batch.targets_BT[row, place]])
        right += logits_BTV[row, place].argmax() == batch.targets_BT[row, place]
    one = held_out_loss(cfg, params, batch)
    for found in (one, jax.jit(lambda: TASK.training_loss(cfg, params, batch, None))()):
        np.testing.assert_allclose(found.total, nats, rtol=1e-5)
        assert found.weight == batch.weights_BT.sum()
    assert one.correct == right


def test_padding_is_not_seen():
    """A model that reads both sides would see what lies behind the end of the text."""
    params = transformer.init_params(CFG, jax.random.key(0))
    (batch,) = hidden(windows(20), rows=1)
    changed = replace(batch, tokens_BT=np.where(batch.segments_BT == 0, 7, batch.tokens_BT))
    assert (changed.tokens_BT != batch.tokens_BT).any()
    assert held_out_loss(CFG, params, batch).total == held_out_loss(CFG, params, changed).total


def test_documents_apart_equal_each_alone():
    """Two documents in a row, with the same tokens hidden as where each has a row of its own."""
    params = transformer.init_params(CFG, jax.random.key(0))
    (batch,) = hidden(windows(14, 10, apart=True), rows=1, task=MaskedLM(share=0.5))
    run = jax.jit(lambda batch: MaskedLM(share=0.5).held_out_loss(CFG, params, batch).total)
    alone = []
    for segment in (1, 2):
        here = batch.segments_BT[0] == segment
        assert 0 < batch.weights_BT[0, here].sum() < here.sum()
        cut = jax.tree.map(lambda x, here=here: np.pad(x[0, here], (0, 32 - here.sum()))[None], batch)
        alone.append(run(cut))
    np.testing.assert_allclose(run(batch), sum(alone), rtol=1e-5)
    swapped = replace(batch, tokens_BT=np.where(batch.segments_BT == 1, 65, batch.tokens_BT))
    of_second = replace(batch, weights_BT=batch.weights_BT * (batch.segments_BT == 2))
    assert run(of_second) == run(replace(of_second, tokens_BT=swapped.tokens_BT))


def test_chunks_and_meshes_give_the_same_loss_and_gradient(monkeypatch):
    params = transformer.init_params(CFG, jax.random.key(0))
    params["masked_head"]["bias"] = jax.random.normal(jax.random.key(1), (259,))
    batch = hidden(windows(255), rows=8)[0]

    def value_and_grad(batch):
        run = jax.jit(jax.value_and_grad(lambda p, b: TASK.training_loss(CFG, p, b, None).total))
        return run(params, batch)

    whole = value_and_grad(batch)
    monkeypatch.setattr(losses, "LOGIT_BYTES", 4 * 8 * 259 * 4)
    assert TASK.places(32) == 8 and TASK.chunk(8, 32, 259) == 4
    found = [value_and_grad(batch)]
    assert TASK.held_out_loss(CFG, params, batch).correct == int(count_right(params, batch))
    mesh = build_mesh(Mesh(data=1, fsdp=2, sequence=2, tensor=2), jax.devices())
    with jax.set_mesh(mesh):
        found.append(value_and_grad(place_batch(batch, mesh)))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(whole[1]))
    for total, gradient in found:
        np.testing.assert_allclose(total, whole[0], rtol=1e-6)
        apart = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), gradient, whole[1])
        assert max(jax.tree.leaves(apart)) < 1e-5 * largest


def count_right(params, batch):
    return ((TASK.guesses(CFG, params, batch, CFG.vocab) == batch.targets_BT) * batch.weights_BT).sum()


def test_no_guess_is_an_id_that_the_tokenizer_has_not():
    batch = hidden(windows(60))[0]
    guesses = TASK.guesses(CFG, transformer.init_params(CFG, jax.random.key(0)), batch, 5)
    assert guesses.shape == batch.tokens_BT.shape and guesses.max() == 4


def test_the_head_sees_the_hidden_places_alone():
    """No array of the step is as large as logits of a quarter of the places."""
    batch = hidden(windows(255), rows=8)[0]
    params = transformer.abstract_params(replace(CFG, vocab=5000))
    graph = jax.make_jaxpr(jax.grad(lambda p: TASK.training_loss(replace(CFG, vocab=5000), p, batch, None).total))(
        params
    )
    sizes = [v.aval.size for equation in graph.jaxpr.eqns for v in equation.outvars]
    assert 8 * 8 * 5000 <= max(sizes) < 8 * 9 * 5000


def test_there_is_room_for_every_count():
    for task in (TASK, MaskedLM(share=0.999), MaskedLM(share=0.001)):
        for length in (2, 5, 16, 128, 509):
            counts = [task.predicted(n) for n in range(1, length + 1)]
            assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] <= task.places(length) <= length


def test_experts_have_their_losses_too():
    cfg = replace(CFG, feedforward=Experts(count=4, chosen=2, width=24))
    params = transformer.init_params(cfg, jax.random.key(0))
    loss = jax.jit(lambda params, batch: TASK.training_loss(cfg, params, batch, None))(params, hidden(windows(60))[0])
    assert loss.routed.penalty > 0 and loss.routed.balance / loss.weight > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: MaskedLM(share=0.0), "share is 0.0; expected a number between 0 and 1"),
        (lambda: MaskedLM(masked=0.95), "masked 0.95, random 0.1; expected shares that make up 1 at most"),
        (lambda: TASK.check(tiny.gpt2()), "MaskedLM reads both sides of a token; expected an encoder"),
        (lambda: TASK.change(Bytes().build(list), 0), "the tokenizer has no mask token; tokenizer.mask asks for one"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises((ValueError, UserError), match=message):
        wrong()


def experiment(text_file, **changes):
    fields = {
        "task": TASK, "tokenizer": Bytes(bos=True, mask=True), "steps": 10, "evaluate_every": 5, "sample_every": 5,
        "model": replace(CFG, vocab=None, context=16, width=16, dropout=0.1, init_std=0.05),
    }  # fmt: skip
    return tiny.experiment(text_file, **fields | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a text and a run of it."""
    place = tmp_path_factory.mktemp("made")
    (place / "text.txt").write_text(tiny.text(20_000))
    with on_one_device():
        loop.train(experiment(place / "text.txt"), place / "run")
    return place


def test_a_run_in_two_parts_is_one_run(made, one_device_here, tmp_path, monkeypatch):
    parts = resume.run(experiment(made / "text.txt"), tmp_path / "parts", stops=(5,), monkeypatch=monkeypatch)
    resume.assert_same_run(made / "run", parts)


def test_one_protocol_along_a_run_and_after_it(made, one_device_here, tmp_path, capsys):
    run, text_file = made / "run", made / "text.txt"
    last = resume.metrics(run)[-1]
    assert set(last) == {"step", "eval_loss", "accuracy", "perplexity"}
    assert last["perplexity"] == pytest.approx(np.exp(last["eval_loss"]))
    sample = (run / "samples.txt").read_text().split("--- step 10\n")[1]
    assert sample.count("[") == 2
    words = ["evaluate", "--model", str(run), "--json", str(tmp_path / "out.json")]
    assert command_line.main([*words]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {name: found[name] for name in last if name != "step"} == {
        name: last[name] for name in last if name != "step"
    }
    # 2,000 characters and BOS are held out, in 125 rows with 2 hidden and one with 1
    assert found["tokens"] == 251 and "251 tokens hidden" in capsys.readouterr().out
    assert command_line.main([*words, "--text", str(text_file)]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["tokens"] == 2501


def test_held_out_masks_know_neither_the_seed_nor_the_batch():
    """So two models are compared on the same tokens."""
    params, read = transformer.init_params(CFG, jax.random.key(0)), windows(300, 50)
    found = []
    for seed, rows in ((3, 4), (4, 4), (3, 7)):
        exp = experiment("unused", model=CFG, seed=seed, batch_size=rows, microbatches=1)
        found.append(held_out(exp, compile_loss(exp), params, read, build_mesh(Mesh(), jax.devices()[:1]), TOKENIZER))
    assert found[0].nats == found[1].nats
    assert found[2].nats == pytest.approx(found[0].nats, rel=1e-6)
    assert len({(one.tokens, one.correct) for one in found}) == 1


def test_the_plan_knows_the_batch(text_file):
    """Its abstract batch is what is read, so that what it compiles is the step; and no remedy is one that is not
    there."""
    exp = experiment(text_file, data=DataConfig(source=TextFiles(path=str(text_file)), length=16), microbatches=1)
    exp = exp.with_vocab(259)
    mesh = build_mesh(Mesh(), jax.devices()[:1])
    (batch, *_) = hidden(windows(300, length=16), rows=exp.batch_size)
    planned = abstract_batch(exp, mesh)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(planned)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(batch)
    ]
    assert jax.tree.structure(planned) == jax.tree.structure(batch)
    made = plan_on(
        replace(exp, model=replace(exp.model, context=128), data=DataConfig(length=128)), of_this_machine(), mesh
    )
    assert made.fits and not any("loss_chunk" in name for names, _ in changes(made) for name in names)
