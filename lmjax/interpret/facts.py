"""What a page shows of one text: every number of it, computed by the modules beside this one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.interpret.attribution import place_of
from lmjax.interpret.capture import LOGITS, Model, Read, chosen, forward
from lmjax.interpret.direct import WRITERS, direct_attributions
from lmjax.interpret.gradients import gradient_times_input, integrated_gradients
from lmjax.interpret.heads import head_scores
from lmjax.interpret.lens import Lens, lens_of
from lmjax.interpret.page import page, rounded
from lmjax.interpret.residual import stream
from lmjax.models.config import ModelConfig
from lmjax.tokenizers.pieces import pieces, words

# of every so many tokens one is hidden at a time, so that the text is read as many times
EVERY = 8
SCORES = {
    "previous": "the token before", "duplicate": "the same token, earlier",
    "induction": "what followed the same token (on random tokens, said twice)",
}  # fmt: skip
PATTERNS = {
    "encoder.*.attn.hook_pattern": ("encoder: source to source", "source", "source"),
    "blocks.*.attn.hook_pattern": ("of the text to itself", "tokens", "tokens"),
    "blocks.*.cross_attn.hook_pattern": ("of the text to the source", "tokens", "source"),
}


@dataclass(frozen=True)
class Wanted:
    """top: alternatives for each place. token: which one the attribution over the input is for, counted from 0 or from
    the end; None: what comes next, or the end where the text has it, of an encoder the first hidden one, of a model of
    labels the label. steps: of integrated gradients; 0: the gradient alone, times the input."""

    top: int = 5
    token: int | None = None
    steps: int = 0


def written_page(model: Model, rows: Read, wanted: Wanted, *, title: str, about: str, say: Callable) -> str:
    """The page of one text. say: is told what is being computed. Raises UserError for a token that is not there."""
    cfg = model.cfg
    facts = {"title": title, "about": about, "notes": {}, "tokens": _pieces(model, rows.tokens[0])}
    facts["source"] = None if rows.source is None else _pieces(model, rows.source[0])
    # a causal model says at the place before what stands here
    ahead = int(cfg.causal and not cfg.outputs)
    token = _token(model, rows, wanted.token, ahead)
    facts["chosen"] = token
    # programs are compiled one core each: what needs nothing else is compiled and computed beside the rest
    with ThreadPoolExecutor(1) as aside:
        scores = aside.submit(_scores, model)
        owed = aside.submit(_input, model, rows, wanted, token, ahead)
        attention = _of_one_pass(model, rows, wanted.top, facts, ahead, say)
        say("what its heads look at, and what the prediction owes to each token")
        facts |= scores.result() | {"input": owed.result()}
    facts["notes"] |= _notes(model, facts, wanted)
    causal = [cfg.causal and "source" not in (kind["by"], kind["of"]) for kind in facts["attention"]]
    return page(facts, attention, causal=causal)


def _of_one_pass(model: Model, rows: Read, top: int, facts: dict, ahead: int, say: Callable) -> list[np.ndarray]:
    """Adds to the facts what one pass over the text says. The attention weights (L, N, T, S) of each of its kinds."""
    say("reading the text")
    kinds = _kinds(rows)
    names = (*chosen(model, [pattern for pattern, *_ in kinds]), *stream(model.cfg), *chosen(model, WRITERS))
    found = forward(model.cfg, model.params, rows, tuple(dict.fromkeys(names)), {})
    if model.cfg.outputs:
        facts |= _labels(model, rows)
    else:
        say("what the model says, layer by layer")
        vocabulary = Words(model)
        lens = lens_of(model, rows, found, top=top)
        facts |= _predictions(model, rows, lens, vocabulary, top)
        facts["lens"] = _lens(facts, lens, vocabulary, ahead)
        say("which parts of the model said it")
        facts["direct"] = _direct(model, rows, found, lens, facts, ahead)
        facts["words"] = vocabulary.texts
    facts["attention"] = [
        {"name": name, "by": by, "of": of, "scored": by == of == "tokens"} for _, name, by, of in kinds
    ]
    return [np.stack([np.asarray(found[site][0]) for site in chosen(model, kind)]) for kind, *_ in kinds]


class Words:
    """The texts of tokens, each once. numbers: what the page knows them by."""

    def __init__(self, model: Model):
        self._model, self._numbers, self.texts = model, {}, []

    def numbers(self, ids: np.ndarray):
        """Nested lists in the shape of ids."""
        new = [i for i in dict.fromkeys(ids.ravel().tolist()) if i not in self._numbers]
        for i, text in zip(new, _words(self._model, new), strict=True):
            self._numbers[i] = len(self.texts)
            self.texts.append(text)
        return np.vectorize(self._numbers.get, otypes=[int])(ids).tolist()


def _pieces(model: Model, ids) -> list[str]:
    return [f"<{i}>" for i in np.asarray(ids)] if model.tokenizer is None else pieces(model.tokenizer, ids)


def _words(model: Model, ids) -> list[str]:
    known = np.inf if model.tokenizer is None else model.tokenizer.vocab_size
    # a vocabulary may have been filled up to a round number
    return [f"<{i}>" if model.tokenizer is None or i >= known else words(model.tokenizer, [i])[0] for i in ids]


def _token(model: Model, rows: Read, token: int | None, ahead: int) -> int:
    """Its place; one behind the text's last: what comes next."""
    length = rows.tokens.shape[1]
    if token is not None:
        if not -length <= token < length:
            raise UserError(f"--token {token}: expected {-length} to {length - 1}, the text's tokens")
        return token % length
    if ahead:
        return length - int(_ended(model, rows))
    mask = None if model.tokenizer is None else model.tokenizer.policy.mask
    hidden = np.flatnonzero(np.asarray(rows.tokens[0]) == mask) if mask is not None else []
    return int(hidden[0]) if len(hidden) else length - 1


def _ended(model: Model, rows: Read) -> bool:
    """Whether the text's last token is one that nothing follows; the first token begins it, and ends none."""
    stops = () if model.tokenizer is None else model.tokenizer.policy.stops
    return rows.tokens.shape[1] > 1 and int(rows.tokens[0][-1]) in stops


def _labels(model: Model, rows: Read) -> dict:
    place = place_of(model, rows, 0, None)
    logits_C = forward(model.cfg, model.params, rows, (LOGITS,), {})[LOGITS][0, place]
    p_C = np.asarray(jax.nn.softmax(logits_C), np.float64)
    order = np.argsort(-p_C)
    return {"labels": [[model.labels[i], rounded(p_C[i])] for i in order], "words": []}


def _predictions(model: Model, rows: Read, lens: Lens, vocabulary: Words, top: int) -> dict:
    """Of each token how probable it was, how open its place, and what else could stand there."""
    if model.cfg.causal:
        log_p_T, entropy_T = (np.append(np.nan, x[-1, 0, :-1]) for x in (lens.own_log_p, lens.entropy))
        ids_TK, best_TK = lens.ids[-1, 0], lens.log_p[-1, 0]
        best = _ranked(vocabulary, ids_TK, best_TK)
        return {
            "p": rounded(np.exp(log_p_T)), "entropy": rounded(entropy_T), "top": [None, *best[:-1]],
            "next": None if _ended(model, rows) else best[-1],
        }  # fmt: skip
    found = hidden_each(model, rows, top)
    tokens_T, policy = np.asarray(rows.tokens[0]), model.tokenizer.policy
    # what the user hides has no token of its own, and other control tokens are seen all the time
    controls_T = np.isin(tokens_T, sorted(model.tokenizer.controls()))
    seen_T = controls_T & (tokens_T != policy.mask)
    best = _ranked(vocabulary, found["ids"], found["log_p"])
    return {
        "p": rounded(np.exp(np.where(controls_T, np.nan, found["own"]))),
        "entropy": rounded(np.where(seen_T, np.nan, found["entropy"])),
        "top": [None if seen else pairs for seen, pairs in zip(seen_T, best, strict=True)],
    }  # fmt: skip


def _ranked(vocabulary: Words, ids_TK, log_p_TK) -> list:
    p = rounded(np.exp(np.asarray(log_p_TK, np.float64)))
    return [list(zip(*pair, strict=True)) for pair in zip(vocabulary.numbers(np.asarray(ids_TK)), p, strict=True)]


def hidden_each(model: Model, rows: Read, top: int) -> dict[str, np.ndarray]:
    """What an encoder says of each token of one text while that is hidden, and with it every other EVERY-th one; a
    control token is not hidden. ids, log_p: (T, top); own, entropy: (T,)."""
    mask, controls = model.tokenizer.policy.mask, np.array(sorted(model.tokenizer.controls()))
    tokens_T = np.asarray(rows.tokens[0])
    if mask is None:
        raise UserError(f"{path_text(model.path)}: its tokenizer has no mask token")
    place_T = np.arange(len(tokens_T))
    hides_RT = (place_T % EVERY == np.arange(EVERY)[:, None]) & ~np.isin(tokens_T, controls)
    found = _hidden(model.cfg, model.params, np.where(hides_RT, mask, tokens_T), tokens_T, top)
    return {name: np.asarray(x)[place_T % EVERY, place_T] for name, x in found.items()}


@partial(jax.jit, static_argnames=("cfg", "top"))
def _hidden(cfg: ModelConfig, params, tokens_RT, own_T, top: int) -> dict:
    def one(tokens_T):
        logits_TV = forward(cfg, params, Read(tokens_T[None]), (LOGITS,), {})[LOGITS][0]
        log_p_TV = jax.nn.log_softmax(logits_TV)
        best, ids = jax.lax.top_k(log_p_TV, top)
        own = jnp.take_along_axis(log_p_TV, own_T[:, None], axis=-1)[:, 0]
        return {"ids": ids, "log_p": best, "own": own, "entropy": -jnp.sum(jnp.exp(log_p_TV) * log_p_TV, axis=-1)}

    return jax.lax.map(one, tokens_RT)


def _lens(facts: dict, lens: Lens, vocabulary: Words, ahead: int) -> dict:
    """words, p: (R, T, top). targets: of each column."""
    last = [vocabulary.texts[i] for i in np.ravel(vocabulary.numbers(lens.ids[-1, 0, -1:, 0]))]
    return {
        "rows": [row if row == "embed" else f"layer {row}" for row in lens.rows],
        "words": vocabulary.numbers(lens.ids[:, 0]), "p": rounded(np.exp(lens.log_p[:, 0]), 3),
        "kl": rounded(lens.kl[:, 0], 3), "ahead": ahead, "own": "comes next" if ahead else "stands here",
        "targets": [*facts["tokens"][1:], *last] if ahead else facts["tokens"],
    }  # fmt: skip


def _direct(model: Model, rows: Read, found: dict, lens: Lens, facts: dict, ahead: int) -> dict:
    """What each component gave to the logit of the token at each place, behind the last one to the most probable."""
    own_T = np.asarray(rows.tokens[0])
    mask = None if model.tokenizer is None else model.tokenizer.policy.mask
    best_T = lens.ids[-1, 0, :, 0]
    targets_T = np.append(own_T[1:], best_T[-1]) if ahead else np.where(own_T == mask, best_T, own_T)
    names, values_TC = direct_attributions(model, found, targets_T)
    cfg, heads = model.cfg, [f"H{n}" for n in range(model.cfg.heads)]
    columns = [*heads, *[f"cross {head}" for head in heads if cfg.encoder_layers], "attn bias", "mlp"]
    columns = [column for column in columns if _component(0, column) in names]
    return {
        "names": names, "values": rounded(values_TC, 3), "targets": _words(model, targets_T), "ahead": ahead,
        "columns": columns,
        "layers": [[_component(i, column) for column in columns] for i in range(cfg.layers)],
    }  # fmt: skip


def _component(layer: int, column: str) -> str:
    """As `direct.components` names it."""
    return f"L{layer}{column}" if column.startswith("H") else f"L{layer} {column}"


def _kinds(rows: Read) -> list[tuple[str, str, str, str]]:
    """(sites, name, whose the queries are, whose the keys) of the attention that there is."""
    return [(sites, *kind) for sites, kind in PATTERNS.items() if rows.source is not None or "source" not in kind[1:]]


def _scores(model: Model) -> dict:
    """Of every head, and the one that is shown first: that which looks most clearly at one kind of place."""
    scores = {name: np.nan_to_num(x) for name, x in head_scores(model).items()}
    best = max(scores.values(), key=lambda x: x.max())
    head = np.unravel_index(best.argmax(), best.shape)
    return {
        "scores": {name: rounded(x, 3) for name, x in scores.items()}, "told": SCORES, "head": [int(i) for i in head],
    }  # fmt: skip


def _input(model: Model, rows: Read, wanted: Wanted, token: int, ahead: int) -> dict | None:
    """values, source: of the tokens of the text, and of the source where there is one."""
    cfg, row_T = model.cfg, np.asarray(rows.tokens[0])
    place, target = None, None
    if not cfg.outputs:
        place = token - ahead
        if place < 0:
            return None
        # a token that was asked for, or that ends a text, is explained as it stands; else the model's own answer is
        if token < len(row_T) and (ahead or wanted.token is not None):
            is_hidden = model.tokenizer is not None and row_T[token] == model.tokenizer.policy.mask
            target = None if is_hidden else int(row_T[token])
    if wanted.steps:
        found = integrated_gradients(model, rows, position=place, target=target, steps=wanted.steps)
        how = (
            f"integrated gradients of {wanted.steps} steps, in all {found.total + found.error:.2f} of {found.total:.2f}"
        )
    else:
        found, how = gradient_times_input(model, rows, position=place, target=target), "gradient times input"
    name = model.labels[found.target] if cfg.outputs else _words(model, [found.target])[0]
    source, values = np.split(found.values, [len(found.values) - len(row_T)])
    told = f"What each token gave to the logit of {name!r}: {how}"
    return {
        "values": rounded(values, 3), "source": rounded(source, 3), "told": told,
        "largest": max(float(np.abs(found.values).max()), 1e-9),
    }  # fmt: skip


def _notes(model: Model, facts: dict, wanted: Wanted) -> dict[str, str]:
    cfg = model.cfg
    text = "Point at a token for what else could have stood there; choose one for all that follows."
    if not cfg.causal and not cfg.outputs:
        text += f" Each token was predicted while it was hidden, and with it every {EVERY}th other one; control "
        text += "tokens are never hidden."
    if cfg.outputs:
        text = "What the model says of the whole text stands below; choose a token to see who looks at what."
    order = "what comes next" if cfg.causal else "what stands here"
    return {
        "text": text,
        "lens": f"What the model would say of {order} if it stopped after each layer (logit lens); darker is more "
        "probable. The top row is its answer.",
        "heads": "How much each head looks from one token (row) at another (column). The square root of each weight "
        "is kept in steps, so small ones can be seen; point at the large picture for numbers.",
        "from": "The logit of the chosen token as a sum of what each head and layer wrote, with the last norm's spread "
        "held fixed (direct logit attribution); beside it, which tokens of the text the prediction owes it to.",
    }
