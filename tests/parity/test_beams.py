"""Beam search, greedy text and scores beside transformers' generate, of one stack and of two."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lmjax.generate.beam import Beam, beam_search
from lmjax.generate.decode import generate
from lmjax.generate.sampling import choice
from lmjax.interop.read import load_params, open_checkpoint
from tests.parity import originals

NEW = 14
SOURCES = np.array([9, 16, 5])


@cache
def model_of(name: str, seed: int):
    """(original, cfg, params); some token of the middle of its distribution is the end, so that some rows reach it."""
    directory = Path(tempfile.mkdtemp())
    if name in originals.T5_MODELS:
        # transformers' cache of the decoder has as many layers as the encoder
        original = originals.make_t5(name, directory, seed, num_layers=3)
    else:
        original = originals.make(name, directory)
    found = open_checkpoint(directory)
    return original, found.cfg, load_params(found, stacked=seed % 2 == 0)


def rows(seed: int):
    """(sources, filled up with 0, and what is there)."""
    rng = np.random.default_rng(seed)
    here = np.arange(16) < SOURCES[:, None]
    return np.where(here, rng.integers(3, 97, here.shape), 0).astype(np.int32), here


def theirs(original, two_stacks: bool, seed: int, stops, **settings):
    """(new tokens up to the end, score) of each row."""
    tokens, here = rows(seed)
    if not two_stacks:
        tokens, here = tokens[:, :5], here[:, :5]
    ids, mask = torch.tensor(tokens.astype(np.int64)), torch.tensor(here.astype(np.int64))
    out = original.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=list(stops), pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip
    found = []
    for row in out.sequences.numpy()[:, 1 if two_stacks else 5 :]:
        ends = np.flatnonzero(np.isin(row, stops))
        found.append(row[: ends[0]] if len(ends) else row)
    return found, out.sequences_scores.numpy() if "num_beams" in settings else None


def arguments(cfg, seed: int, stops):
    tokens, here = rows(seed)
    if cfg.encoder_layers:
        own = [row[: n.sum()] for row, n in zip(tokens, here)]
        return {"prompts": [np.zeros(1, np.int32)] * 3, "sources": own, "stops": stops, "max_new_tokens": NEW}
    return {"prompts": list(tokens[:, :5]), "stops": stops, "max_new_tokens": NEW}


def ends_of(cfg, params, seed: int) -> tuple[int, ...]:
    """Two ids that greedy texts have in their middle."""
    texts = generate(cfg, params, how=choice(), **arguments(cfg, seed, ()))
    return tuple({int(texts[0][6]), int(texts[1][9])})


CASES = [("t5", 0), ("t5_v1_1", 1), ("t5_v1_1", 2), ("gpt2", 0), ("llama", 1)]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_greedy_token_by_token(name, seed):
    original, cfg, params = model_of(name, seed)
    stops = ends_of(cfg, params, seed)
    expected, _ = theirs(original, bool(cfg.encoder_layers), seed, stops)
    assert len({len(text) for text in expected}) > 1
    found = generate(cfg, params, how=choice(), **arguments(cfg, seed, stops))
    assert [list(x) for x in found] == [list(x) for x in expected]


SETTINGS = [(2, 1.0, False), (4, 0.6, False), (4, 2.0, True), (2, 0.0, True), (4, 1.0, "never"), (4, -0.7, "never")]
# all settings with one model, and two with each: the search knows of a model no more than whether it has a source
SEARCHES = [("t5_v1_1", 1, *one) for one in SETTINGS]
SEARCHES += [(*case, *one) for case in CASES if case != ("t5_v1_1", 1) for one in (SETTINGS[1], SETTINGS[5])]


@pytest.mark.parametrize(("name", "seed", "beams", "length_penalty", "early_stopping"), SEARCHES)
def test_beams_token_by_token_and_their_scores(name, seed, beams, length_penalty, early_stopping):
    original, cfg, params = model_of(name, seed)
    stops = ends_of(cfg, params, seed)
    settings = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    expected, scores = theirs(original, bool(cfg.encoder_layers), seed, stops, num_beams=beams, **settings)
    found, ours = beam_search(cfg, params, how=Beam(beams=beams, **settings), **arguments(cfg, seed, stops))
    assert [list(x) for x in found] == [list(x) for x in expected]
    np.testing.assert_allclose(ours, scores, rtol=1e-4, atol=1e-4)
