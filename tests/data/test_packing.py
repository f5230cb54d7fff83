"""Examples in rows: each once a pass, whole, in a segment of its own, and rows that depend on their number alone."""

import jax
import numpy as np
import pytest

from lmjax.data.batches import Batches
from lmjax.data.packing import Example, PackedRows, packed


def examples(count, *, sources, seed=0):
    rng = np.random.default_rng(seed)
    made, first = [], 1
    for _ in range(count):
        size, other = rng.integers(1, 14), rng.integers(1, 10)
        tokens = np.arange(first, first + size)
        source = np.arange(first, first + other) if sources else None
        made.append(Example(tokens, tokens + 1, np.full(size, 0.5), source=source))
        first += max(size, other)
    return made


@pytest.mark.parametrize("sources", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_example_is_in_one_place_whole(sources, seed):
    made = examples(200, sources=sources)
    rows = PackedRows(made, length=32, source_length=16, seed=seed)
    assert sorted(np.concatenate(rows.rows)) == list(range(200))
    found = {}
    for number, batch in enumerate(rows.in_order(8)):
        for row in range(8):
            if number * 8 + row >= len(rows.rows):
                assert not batch.weights_BT[row].any() and not batch.segments_BT[row].any()
                continue
            order = rows.rows[number * 8 + row]
            for segment, (example, start) in enumerate(zip(order, rows.starts(number * 8 + row), strict=True), 1):
                here = batch.segments_BT[row] == segment
                assert np.flatnonzero(here)[0] == start
                assert batch.positions_BT[row][here].tolist() == list(range(here.sum()))
                source = None
                if sources:
                    there = batch.source.segments_BS[row] == segment
                    source = batch.source.tokens_BS[row][there]
                    assert batch.source.positions_BS[row][there].tolist() == list(range(there.sum()))
                values = (x[row][here] for x in (batch.tokens_BT, batch.targets_BT, batch.weights_BT))
                found[example] = Example(*values, source=source)
    for example, original in zip((found[i] for i in range(200)), made, strict=True):
        jax.tree.map(np.testing.assert_array_equal, example, original)
    assert (batch.source is None) == (not sources)
    # with sources it is their rows that are full
    assert rows.density > (0.5 if sources else 0.93)


def test_no_row_is_overfull_and_the_first_that_has_room_is_taken():
    sizes = np.array([[3], [3], [2], [1], [4]])
    assert [row.tolist() for row in packed(sizes, np.array([5]), np.arange(5))] == [[0, 2], [1, 3], [4]]


def test_a_pass_holds_every_row_once():
    rows = PackedRows(examples(60, sources=False), length=32, source_length=32, seed=0)
    batches = Batches([(rows, 1.0)], rows=1, seed=4)
    count = len(rows.rows)
    starts = [batches.addresses(step)[0].start for step in range(1, 2 * count + 1)]
    assert sorted(starts[:count]) == sorted(starts[count:]) == list(range(count))
    assert starts[:count] != starts[count:]
    jax.tree.map(np.testing.assert_array_equal, batches[7], Batches([(rows, 1.0)], rows=1, seed=4)[7])


def test_the_fingerprint_is_of_all_that_the_model_sees():
    made = examples(20, sources=True)

    def of(changed):
        return PackedRows(changed, length=32, source_length=16).fingerprint()

    one = made[3]
    others = [
        [*made[:3], one._replace(weights=one.weights * 2), *made[4:]],
        [*made[:3], one._replace(source=one.source + 1), *made[4:]], made[::-1],
    ]  # fmt: skip
    assert len({of(made), *map(of, others)}) == 4
    assert of(made) == of(list(made))
