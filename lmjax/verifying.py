"""The verb verify: two models by their paths, of whatever kind each is."""

from dataclasses import replace

import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.interop.original import original_activations
from lmjax.interop.verify import TOKENS, Report, activations, compare, random_tokens
from lmjax.loaded import Loaded, check_one_stack, load_model, read_texts, resolve
from lmjax.places import place
from lmjax.tokenizers.sides import prompt_ids

ORIGINAL = "transformers:"


def report_lines(
    one: str, other: str, step: int | str | None, text: str | None, tolerance: float
) -> tuple[list[str], bool]:
    """What to print, and whether the models agree. Each path is a run, a Hugging Face directory, or "transformers:" and
    such a directory. Raises UserError where a text has fewer than two tokens, or the two read it differently."""
    ours = next((load_model(path, step) for path in (one, other) if not path.startswith(ORIGINAL)), None)
    if ours is None:
        raise UserError(f"--model and --against are both {ORIGINAL}; expected one that lmjax reads")
    check_one_stack(ours, "verify")
    tokens_BT, note = _tokens(ours, text)
    loaded = {one if not one.startswith(ORIGINAL) else other: ours}
    report = compare(*(_activations(path, loaded.get(path), tokens_BT) for path in (one, other)), tolerance)
    return _lines(report, one, other, note), report.parting is None


def _activations(path: str, loaded: Loaded | None, tokens_BT: np.ndarray) -> dict[str, np.ndarray]:
    if path.startswith(ORIGINAL):
        return original_activations(resolve(path.removeprefix(ORIGINAL)), tokens_BT)
    loaded = loaded or load_model(path)
    check_one_stack(loaded, "verify")
    return activations(replace(loaded.experiment.model, dtype="float32"), loaded.params, tokens_BT)


def _tokens(loaded: Loaded, text: str | None) -> tuple[np.ndarray, str]:
    model = loaded.experiment.model
    known = model.vocab if loaded.tokenizer is None else loaded.tokenizer.vocab_size
    if text is None:
        tokens_BT = random_tokens(known, model.context)
        return tokens_BT, f"{tokens_BT.size} tokens drawn at random"
    if loaded.tokenizer is None:
        raise UserError(f"{path_text(loaded.path)} has no tokenizer, and --text needs one")
    texts = read_texts(place(text))
    if not texts:
        raise UserError(f"--text {path_text(text)}: no text in it; expected one")
    ids = prompt_ids(texts[0], loaded.tokenizer)[: min(model.context, 2 * TOKENS)]
    if len(ids) < 2:
        raise UserError(f"--text {path_text(text)}: {len(ids)} token(s); expected at least 2")
    short = "" if len(ids) >= 500 else " (fewer than 500: an error of rotary positions may not show)"
    return np.asarray(ids, np.int32)[None], f"{len(ids)} tokens of {path_text(text)}{short}"


def _lines(report: Report, one: str, other: str, note: str) -> list[str]:
    width = max(len(site.name) for site in report.sites)
    lines = [f"{note}; differences over the largest value at each site, tolerance {report.tolerance:g}"]
    lines += [
        f"{site.name:<{width}}  {site.difference:.1e}" + ("" if site.difference <= report.tolerance else "  PARTS")
        for site in report.sites
    ]
    parting = report.parting
    worst = max(report.sites, key=lambda site: site.difference)
    if parting is None:
        return [*lines, f"{one} and {other} agree at all {len(lines) - 1} sites; the largest: {worst.name}"]
    return [*lines, f"{one} and {other} part first at {parting.name}: {parting.difference:.1e}"]
