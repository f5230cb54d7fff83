"""Windows: every token a target once, documents apart when asked, and a batch that depends on its step alone."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from lmjax.data import windows
from lmjax.data.batches import Batches
from lmjax.data.store import TokenStream, stream_of
from lmjax.data.windows import Windows
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tokenizers import Bytes
from tests import tiny


def stream(lengths, bos=None, shards=1):
    """Documents of these lengths, of ids that count up from 1; a document's first id is bos where there is one."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    starts = np.cumsum([0, *lengths])[:-1]
    if bos is not None:
        ids[starts] = bos
    return TokenStream(tuple(np.array_split(ids, shards)), starts, sum(lengths), bos)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("total", "length", "rows"), [(50, 7, 4), (57, 7, 1), (8, 7, 3), (2, 7, 2), (57, 8, 64)])
def test_every_token_but_the_first_is_a_target_once(total, length, rows, shards):
    batches = list(Windows(stream([total], shards=shards), length, apart=False).in_order(rows))
    targets = np.concatenate([b.targets_BT[b.weights_BT > 0] for b in batches])
    inputs = np.concatenate([b.tokens_BT[b.weights_BT > 0] for b in batches])
    assert targets.tolist() == list(range(2, total + 1))
    assert (inputs + 1 == targets).all()
    assert all(b.tokens_BT.shape == (rows, length) for b in batches)


def test_documents_apart():
    """Positions begin again, segments count up, and nothing is predicted across a boundary."""
    (batch,) = Windows(stream([3, 5, 4]), 8, apart=True).in_order(2)
    assert batch.segments_BT.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch.positions_BT[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.positions_BT[1, :4].tolist() == [0, 1, 2, 3]
    assert batch.weights_BT.tolist() == [[1, 1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]]


def test_bos_is_never_predicted():
    (batch,) = Windows(stream([3, 5, 4], bos=99), 11, apart=False).in_order(1)
    assert batch.weights_BT.tolist() == [[1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1]]
    assert 99 not in batch.targets_BT[batch.weights_BT > 0]
    assert batch.segments_BT is None


@partial(jax.jit, static_argnames="cfg")
def loss(cfg, params, batch):
    return CausalLM().held_out_loss(cfg, params, batch).total


def losses(cfg, params, batch):
    """The loss of every row alone."""
    return np.array(
        [loss(cfg, params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(len(batch.tokens_BT))]
    )


@pytest.mark.parametrize("cfg", [tiny.gpt2(), tiny.llama()], ids=["gpt2", "llama"])
def test_packed_equals_unpacked(cfg):
    params = tiny.params(cfg)
    lengths = [9, 14, 9]
    (packed,) = Windows(stream(lengths), 32, apart=True).in_order(1)
    alone = [windows.read(stream(lengths), np.array([start]), 32, apart=True) for start in (0, 9, 23)]
    cut = [replace(b, weights_BT=b.weights_BT * (np.arange(32) < n)) for b, n in zip(alone, lengths, strict=True)]
    total = sum(losses(cfg, params, batch).sum() for batch in cut)
    np.testing.assert_allclose(losses(cfg, params, packed).sum(), total, rtol=1e-5)


def test_changing_one_document_leaves_the_others_logits_untouched():
    cfg = tiny.llama()
    params = tiny.params(cfg)
    batch = tiny.batch(cfg, 1, apart=True)
    first = batch.segments_BT[0] == 1
    changed = replace(batch, tokens_BT=np.where(first, (batch.tokens_BT + 1) % cfg.vocab, batch.tokens_BT))
    run = lambda b: tiny.hidden(cfg, params, b.tokens_BT, b.positions_BT, b.segments_BT)[0][0]
    before, after = run(batch), run(changed)
    assert (before[~first] == after[~first]).all()
    assert (before[first] != after[first]).any(axis=-1).all()


def batches(**changes):
    text = tiny.text(3000)
    stream = stream_of([text[:2000], text[2000:]], Bytes().build(list))
    return Batches([(Windows(stream, 16, apart=False), 1.0)], **{"rows": 4, "seed": 5} | changes)


def test_a_pass_holds_every_window_once_and_each_pass_is_in_another_order():
    b = batches()
    windows_a_pass = (3000 - 1) // 16 - 1
    assert windows_a_pass % 2 == 0
    starts = [a.start for step in range(1, windows_a_pass + 1) for a in b.addresses(step)]
    passes = [starts[i : i + windows_a_pass] for i in range(0, len(starts), windows_a_pass)]
    assert len(passes) == 4
    for one in passes:
        shift = min(one)
        assert sorted(one) == [shift + 16 * i for i in range(windows_a_pass)]
    assert len({tuple(one) for one in passes}) == 4
    assert len({min(one) for one in passes}) > 1


def test_a_batch_is_a_pure_function_of_its_step():
    """Any order of asking, any object, with and without the thread that reads ahead, across the end of a pass."""
    b, again = batches(), batches()
    ahead = dict(b.ahead(90, 100))
    for step in (100, 90, 95, 93):
        for one in (again[step], ahead[step]):
            jax.tree.map(np.testing.assert_array_equal, b[step], one)
    assert b.addresses(1) != batches(seed=6).addresses(1)


def test_an_error_in_the_reading_thread_reaches_the_loop():
    def broken(batch):
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(batches().ahead(1, 9, broken))


def test_mixture_follows_its_weights_and_repeats_each_part_alone():
    a, b = stream([33 * 16 + 1]), stream([200])
    parts = [Windows(part, 16, apart=False) for part in (a, b)]
    mixed = Batches(list(zip(parts, (3.0, 1.0), strict=True)), rows=8, seed=0)
    numbers = np.array([address.part for step in range(1, 101) for address in mixed.addresses(step)])
    assert (numbers == 0).mean() == pytest.approx(0.75, abs=0.01)
    for start in range(0, 800, 8):
        assert (numbers[start : start + 8] == 1).sum() == 2
    alone = Batches([(parts[0], 1.0)], rows=8, seed=0)
    wanted = [address for step in range(1, 40) for address in alone.addresses(step)]
    mine = [address for step in range(1, 60) for address in mixed.addresses(step) if address.part == 0]
    assert mine[: len(wanted)] == wanted[: len(mine)]
    batch, addresses = mixed[7], mixed.addresses(7)
    for row, address in enumerate(addresses):
        source = (a, b)[address.part]
        assert batch.tokens_BT[row].tolist() == source.gather(np.arange(address.start, address.start + 16)).tolist()
