"""The text that a run was trained on and the text that it held out, found again from its experiment."""

from collections.abc import Iterator

from lmjax.data.mixture import parts
from lmjax.data.sources import Document, OtherFiles, Record, Source
from lmjax.data.store import SPLITS, TokenStream, kept_store, open_store, stream_of
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
    known = run.read_json("data.json")["fingerprints"]
    # what is in the cache is what was trained on, whatever became of the text
    stores = [kept_store(one) or open_store(source, tokenizer) for one, source in zip(known, sources, strict=True)]
    if [store.fingerprint for store in stores] != known:
        raise UserError(
            f"--suite {suite}: data.source of {path_text(path)} ({', '.join(map(name_of, sources))}) is another text "
            "than it was trained on"
        )
    return tuple([store.stream(split) for store in stores] for split in SPLITS)


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
        for record, text in _held_out(source):
            yield (mine if field == "source" else value_of(record, field)), text


def _held_out(source: Source) -> Iterator[tuple[Record, str]]:
    """(record, what of its document is held out), without those of which nothing is."""
    apart = isinstance(source.held_out, OtherFiles)
    for record in (source.of_held_out() if apart else source).records():
        document = Document(record.name, record.text(source.field))
        # a document's split does not depend on the others
        parts = [("held_out", document)] if apart else source.held_out.split([document])
        yield from ((record, part.text) for split, part in parts if split == "held_out" and part.text)


def value_of(record: Record, field: str) -> str:
    """A record's text or number in a field, as the name of a group. Raises UserError for anything else."""
    value = record.field(field)
    if not isinstance(value, str | int | float):
        raise record.wrong(f"{field!r} is {str(value)[:40]!r}; expected a text or a number")
    return str(value)
