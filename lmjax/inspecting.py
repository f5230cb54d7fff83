"""The verb `inspect`: what goes on inside a model while it reads a text, as one page."""

from dataclasses import dataclass, replace

import numpy as np

from lmjax.batching import Reader
from lmjax.checkpoint import write_whole
from lmjax.errors import UserError, path_text
from lmjax.generate.beam import write
from lmjax.generate.sampling import choice
from lmjax.interpret.capture import Read, read
from lmjax.interpret.facts import Wanted, written_page
from lmjax.loaded import Loaded, load_model, needed_start, needed_tokenizer
from lmjax.masked_model import MaskedModel
from lmjax.models.config import ModelConfig
from lmjax.models.transformer import apart
from lmjax.places import Place
from lmjax.plan.counts import params as parameters
from lmjax.tasks.classification import Classification
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.sides import source_ids

# of a translation that is not given
WRITTEN = 64


@dataclass(frozen=True)
class Inspected:
    """What `interpret` reads of a model. params: layers stacked, of which one is compiled and not each. start: see
    `Loaded`; labels: of a model of labels."""

    cfg: ModelConfig
    params: dict
    tokenizer: Tokenizer
    path: Place
    start: int | None
    labels: tuple[str, ...]


def run(options, step: int | str | None, file) -> int:
    """Writes the page. Raises UserError for a text that the model cannot read."""
    if options.top < 1 or options.integrated < 0:
        raise UserError("--top: expected 1 or more; --integrated: 0 or more")
    loaded = load_model(options.model, step)
    model = inspected(loaded)
    if options.target is not None and not model.cfg.encoder_layers:
        raise UserError(f"--target: {path_text(loaded.path)} is no encoder-decoder; expected --prompt alone")
    rows = _rows(model, options.prompt, options.target)
    wanted = Wanted(top=min(options.top, model.cfg.vocab), token=options.token, steps=options.integrated)
    after = "" if loaded.step is None else f", step {loaded.step}"
    title = f"{options.model}{after}"
    size = f"{parameters(model.cfg):,} parameters, {model.cfg.layers} layers of {model.cfg.heads} heads"
    about = f"{type(loaded.experiment.task).__name__}, {size}"
    content = written_page(model, rows, wanted, title=title, about=about, say=lambda what: print(what, flush=True))
    write_whole(file, content)
    print(f"{path_text(file)}: {rows.tokens.shape[1]} tokens, {len(content.encode()):,} bytes")
    return 0


def inspected(loaded: Loaded) -> Inspected:
    """Raises UserError where its directory has no tokenizer, or its task has a head that no logit comes from."""
    task, cfg = loaded.experiment.task, replace(loaded.experiment.model, dtype="float32", dropout=0.0, remat="nothing")
    if cfg.outputs and not isinstance(task, Classification):
        raise UserError(
            f"inspect: {path_text(loaded.path)} is a model trained for {type(task).__name__}; expected one of tokens "
            "or labels"
        )
    labels = task.labels if isinstance(task, Classification) else ()
    return Inspected(cfg, loaded.params, needed_tokenizer(loaded), loaded.path, loaded.start, labels)


def _rows(model: Inspected, prompt: str, target: str | None) -> Read:
    """A text's tokens; where it hides some, as MaskedModel reads it. An encoder-decoder's prompt is the source; what it
    is to have said is what it writes itself, where it is not given."""
    cfg = model.cfg
    if not cfg.encoder_layers:
        if not cfg.causal and not cfg.outputs:
            ids = MaskedModel(cfg, model.params, model.tokenizer, model.path).encode(prompt)
            return read(model, ids[None])
        return read(model, prompt)
    if target is None:
        source = source_ids(prompt, model.tokenizer)
        Reader(cfg, model.tokenizer, model.path).filled_up([source])
        start = np.array([needed_start(model)], np.int32)
        room = min(WRITTEN, cfg.context - 1)
        (new,) = write(
            cfg, apart(model.params), [start], choice(), seed=0, max_new_tokens=room, sources=[source],
            stops=model.tokenizer.policy.stops, known=model.tokenizer.vocab_size,
        )  # fmt: skip
        return Read(np.concatenate([start, new])[None].astype(np.int32), None, source[None], None)
    return read(model, target, prompt)
