"""The text that a run was trained on and the text that it held out, found again from its experiment."""

from collections.abc import Iterator

from lmjax.data.mixture import parts
from lmjax.data.sources import OtherFiles, Source
from lmjax.data.store import TokenStream, open_store, stream_of
from lmjax.errors import UserError, path_text
from lmjax.experiment import Experiment
from lmjax.places import Place
from lmjax.run_directory import RunDirectory
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tokenizers import Tokenizer


def experiment_of(path: Place, suite: str) -> Experiment:
    """Of a run. Raises UserError for another directory: nobody knows what its model has read."""
    run = RunDirectory(path)
    if not run.exists:
        raise UserError(f"--suite {suite}: {path_text(path)} is not a run, and its training text is not known")
    return run.experiment()


def streams(path: Place, suite: str, *, records: bool) -> tuple[list[TokenStream], list[TokenStream]]:
    """(training text, held-out text) of each source of a run, as its tokenizer reads them. records: whether a task on
    records will do, whose texts are read into memory. Raises UserError where the text is not there, or is another now.
    """
    experiment, run = experiment_of(path, suite), RunDirectory(path)
    sources, tokenizer = [source for source, _ in parts(experiment.data.source)], run.tokenizer()
    if experiment.task.on_records:
        if not records:
            task = type(experiment.task).__name__
            raise UserError(f"--suite {suite}: {path_text(path)} was trained on records ({task}); expected a text")
        return tuple([_of_records(experiment, source, split, tokenizer) for source in sources] for split in SPLITS)
    stores = [open_store(source, tokenizer) for source in sources]
    known = run.read_json("data.json")["fingerprints"]
    if [store.fingerprint for store in stores] != known:
        raise UserError(
            f"--suite {suite}: data.source of {path_text(path)} ({', '.join(map(name_of, sources))}) is another text "
            "than it was trained on"
        )
    return tuple([store.stream(split) for store in stores] for split in SPLITS)


SPLITS = ("train", "held_out")


def _of_records(experiment: Experiment, source: Source, split: str, tokenizer: Tokenizer) -> TokenStream:
    texts = (text for record in source.records_of(split) for text in experiment.task.texts(record))
    return stream_of(texts, tokenizer)


def name_of(source: Source) -> str:
    """What a source reads."""
    return str(getattr(source, "path", None) or getattr(source, "directory", None) or type(source).__name__)


def held_out_by(path: Place, field: str) -> Iterator[tuple[str, str]]:
    """(value of the field, text) of every held-out document of a run; the field `source`: which part of a mixture it is
    of. Raises UserError where a document's record has no such field."""
    experiment = experiment_of(path, "perplexity")
    if experiment.task.on_records or isinstance(experiment.task, MaskedLM):
        task = type(experiment.task).__name__
        raise UserError(f"--by {field}: {path_text(path)} was trained for {task}; expected --data FILE")
    for number, (source, _) in enumerate(parts(experiment.data.source), 1):
        mine = f"{number}: {name_of(source)}"
        values = {} if field == "source" else _values(source, field)
        for split, document in source.split():
            if split == "held_out" and document.text:
                yield (mine if field == "source" else values[document.name]), document.text


def _values(source: Source, field: str) -> dict[str, str]:
    read = source.of_held_out() if isinstance(source.held_out, OtherFiles) else source
    return {record.name: value_of(record, field) for record in read.records()}


def value_of(record, field: str) -> str:
    """A record's text or number in a field, as the name of a group. Raises UserError for anything else."""
    value = record.field(field)
    if not isinstance(value, str | int | float):
        raise record.wrong(f"{field!r} is {str(value)[:40]!r}; expected a text or a number")
    return str(value)
