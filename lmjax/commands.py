"""The verbs of run.py. What a user can mend becomes one line on stderr and exit code 2."""

import os
import re
import sys
import threading
import warnings
from pathlib import Path

from lmjax.cache import cache_root
from lmjax.errors import Notice, UserError, one_line, path_text
from lmjax.places import is_url, place


def run(verb: str, options, others: list[str]) -> int:
    """Run a verb; the exit code: 0, 2 for a mistake of the user's, 130 and 143 where a signal stopped training."""
    prepare_libraries()
    try:
        verbs = {
            "train": train, "data": show_data, "evaluate": evaluate, "predict": predict, "generate": generate,
            "export": export, "inspect": inspect, "verify": verify, "plan": plan,
        }  # fmt: skip
        return verbs[verb](options, overrides(others))
    except UserError as error:
        reason = one_line(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        reason = one_line(error)
    sys.stderr.write(f"error: {reason}\n")
    return 2


def overrides(words: list[str]) -> list[str]:
    """`--a.b=c` and `--a.b c` as ["a.b=c"]."""
    found, words = [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UserError(f"{word!r}: expected --key=value")
        if "=" not in word:
            if not words or words[0].startswith("--"):
                raise UserError(f"{word}: expected {word}=value")
            word = f"{word}={words.pop(0)}"
        found.append(word[2:])
    return found


def prepare_libraries() -> None:
    """Compiled programs are kept from start to start; stderr is for errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import logging

    import jax

    from lmjax.compilation import room_for_simulated_devices

    room_for_simulated_devices()
    # what fails in Orbax's threads is raised again where its result is asked for
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    tell = threading.excepthook
    threading.excepthook = lambda e: None if type(e.thread).__module__.startswith("orbax") else tell(e)
    logging.getLogger("jax").setLevel(logging.ERROR)
    _print_notices()
    # a program that a full disk or a kill cut short is compiled again
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(cache_root() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _print_notices() -> None:
    """In place of Python's way to show them, with a file and a line of ours."""
    others = warnings.showwarning

    def show(message, category, *place):
        print(f"WARNING: {message}") if issubclass(category, Notice) else others(message, category, *place)

    warnings.showwarning = show
    warnings.simplefilter("always", Notice)


def train(options, changes: list[str]) -> int:
    from lmjax import experiment, hosts
    from lmjax.train import loop

    meeting = hosts.Meeting(
        options.coordinator, options.processes, options.process, options.join_timeout, options.peer_timeout
    )
    meeting.check()
    loaded = experiment.load(options.config, changes)
    path = place(options.run) if options.run else Path("runs") / loaded.name
    with hosts.together(meeting):
        try:
            loop.train(loaded, path, accept_changes=options.accept_changes)
        except loop.Stopped as stopped:
            if hosts.first():
                print(stopped, flush=True)
            return stopped.code
    return 0


def show_data(options, changes: list[str]) -> int:
    """A few windows of one step's batch, decoded, with the boundaries between documents; and the round trip."""
    from lmjax import experiment
    from lmjax.data.inspect import report
    from lmjax.train.prepare import prepare
    from lmjax.train.reading import held_out_texts

    if options.step < 1 or options.windows < 1:
        raise UserError("--step and --windows: expected positive numbers")
    prepared = prepare(experiment.load(options.config, changes), None)
    texts = held_out_texts(prepared.experiment)
    for line in report(prepared.batches, prepared.tokenizer, texts, options.step, options.windows):
        print(line)
    return 0


def evaluate(options, _) -> int:
    from lmjax import evaluating
    from lmjax.evaluate.suites import OF_SUITES

    if options.suite:
        return evaluate_suite(options)
    of_suites = [name for name in OF_SUITES if getattr(options, name) is not None]
    if of_suites:
        raise UserError(f"--{of_suites[0]}: expected --suite NAME too")
    return evaluating.run(options, _step(options.step), _result_file(options.json))


def evaluate_suite(options) -> int:
    from lmjax.evaluate import suites
    from lmjax.evaluate.fairness_page import read_results
    from lmjax.evaluating import with_context
    from lmjax.language_model import LanguageModel
    from lmjax.loaded import load_model, needed_tokenizer, with_weights
    from lmjax.masked_model import MaskedModel

    if options.text:
        raise UserError("--text: a suite reads --data FILE")
    if options.beams is not None or options.length_penalty is not None:
        raise UserError("--beams, --length_penalty: what a suite writes it writes greedily")
    result_file, page = _result_file(options.json), options.report and _new_file("--report", options.report)
    if options.earlier and not page:
        raise UserError("--earlier: expected --report FILE too")
    earlier, parts = read_results(options.earlier or []), suites.parted(options)
    chosen = [suites.chosen(part) for part in parts]
    loaded = load_model(options.model, _step(options.step), stacked=False)
    for part in parts:
        suites.check_model(part, loaded)
    cfg = with_context(loaded.experiment, options.context).model_of_rows
    kind = LanguageModel if cfg.causal else MaskedModel
    model = kind(cfg, with_weights(loaded, options.weights), needed_tokenizer(loaded), loaded.path)
    told = []
    for part, suite in zip(parts, chosen, strict=True):
        if told:
            print()
        told.append(suites.show(suites.run(suites.of_run(suite, loaded, part), model), part, loaded.step))
        # what is found is there, even if the next suite fails
        if result_file is not None:
            suites.write(told, result_file)
    if page:
        suites.report(told, earlier, page)
    return 0


def generate(options, _) -> int:
    from lmjax.generate import confidence, text
    from lmjax.generate.beam import way
    from lmjax.loaded import (
        check_next_token,
        check_one_stack,
        load_model,
        needed_start,
        needed_tokenizer,
        with_weights,
    )
    from lmjax.models.transformer import apart

    how = way(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p,
        beams=options.beams, length_penalty=options.length_penalty,
    )  # fmt: skip
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed {options.seed}: expected a number from 0 to 2**31 - 1")
    loaded = load_model(options.model, _step(options.step), stacked=False)
    check_next_token(loaded, "generate")
    cfg, params = loaded.experiment.model, apart(with_weights(loaded, options.weights))
    tokenizer, prompts = needed_tokenizer(loaded), options.prompt or [""]
    if options.chat:
        check_one_stack(loaded, "--chat")
        asked = text.messages(tokenizer, prompts)
    elif cfg.encoder_layers:
        if not options.prompt:
            raise UserError("--prompt TEXT is needed: an encoder-decoder writes for a source")
        asked = text.sources(tokenizer, prompts, start=needed_start(loaded))
    else:
        asked = text.beginnings(tokenizer, prompts)
    news = text.written(
        cfg, params, tokenizer, asked, max_new_tokens=options.max_new_tokens, how=how, seed=options.seed
    )
    if options.show is None:
        told = text.texts(tokenizer, asked, news)
    else:
        palette = confidence.Palette.of(os.environ, sys.stdout.isatty())
        told = confidence.report(cfg, params, tokenizer, asked, news, palette)
    for line in told:
        print(line)
    return 0


def predict(options, _) -> int:
    from lmjax import predicting

    return predicting.run(options, _step(options.step), _new_file("--output", options.output))


def export(options, _) -> int:
    from lmjax.interop.labels import written
    from lmjax.interop.write import export as write
    from lmjax.loaded import load_model

    to = _local("--to", options.to)
    if options.adapter:
        return export_adapter(options, to)
    if options.base is not None:
        raise UserError("--base: goes with --adapter")
    loaded = load_model(options.model, _step(options.step))
    model = loaded.experiment.model
    family = write(
        model, loaded.params, loaded.tokenizer, to, dtype=options.dtype, start=loaded.start,
        labels=written(loaded.experiment.task, model),
    )  # fmt: skip
    size = sum(file.stat().st_size for file in to.iterdir())
    without = "; its sparse autoencoder is no part of it" if model.autoencoder else ""
    print(f"{path_text(to)}: {family.architecture_of(model)}, {options.dtype}, {size:,} bytes{without}")
    return 0


def export_adapter(options, to: Path) -> int:
    """A run's adapter alone, as PEFT reads it."""
    from lmjax.interop import peft
    from lmjax.loaded import HUB, load_adapter, resolve

    if options.dtype != "float32":
        raise UserError(f"--dtype {options.dtype}: an adapter is written in float32")
    experiment, params = load_adapter(options.model, _step(options.step))
    base = options.base or experiment.init_from
    if options.base is None and not base.startswith(HUB) and not (resolve(base) / "config.json").is_file():
        raise UserError(f"--adapter: its base {path_text(base)} is a run; export that too, and name it by --base DIR")
    peft.export_adapter(experiment, params, to, base.removeprefix(HUB))
    size = sum(file.stat().st_size for file in to.iterdir())
    print(f"{path_text(to)}: a LoRA of rank {experiment.adapter.rank} for PEFT, on {base}, {size:,} bytes")
    return 0


def inspect(options, _) -> int:
    from lmjax import inspecting

    return inspecting.run(options, _step(options.step), _new_file("--to", options.to))


def verify(options, _) -> int:
    from lmjax.verifying import report_lines

    lines, same = report_lines(options.model, options.against, _step(options.step), options.text, options.tolerance)
    print("\n".join(lines))
    return 0 if same else 1


def plan(options, changes: list[str]) -> int:
    from lmjax import planning_verb

    return planning_verb.run(options, changes)


def _local(option: str, text: str) -> Path:
    if is_url(text):
        raise UserError(f"{option} {path_text(text)}: expected a path of this machine")
    return Path(text)


def _result_file(text: str | None) -> Path | None:
    """Where the figures of --json go, seen before they are computed."""
    if text is None:
        return None
    return _new_file("--json", text)


def _new_file(option: str, text: str) -> Path:
    """A file that can be written."""
    file = _local(option, text)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"{option} {path_text(text)}: expected a file in a directory that exists")
    return file


def _step(text: str | None) -> int | str | None:
    if text is None or text == "best":
        return text
    if not re.fullmatch("[0-9]{1,18}", text):
        raise UserError(f"--step {text}: expected a number or best")
    return int(text)
