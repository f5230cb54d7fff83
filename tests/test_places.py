"""Text, runs and models at URLs: what lies at memory:// is what lies in a directory."""

import gzip

import fsspec
import pytest

from lmjax.data.sources import JsonLines, TextFiles
from lmjax.data.store import fingerprint
from lmjax.errors import UserError
from lmjax.places import Remote, place
from lmjax.tokenizers import Bytes
from tests import tiny


@pytest.fixture
def bucket():
    """A URL with nothing below."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return "memory://bucket"


def upload(folder, url):
    for file in folder.rglob("*"):
        if file.is_file():
            fsspec.filesystem("memory").pipe(f"{url}/{file.relative_to(folder)}", file.read_bytes())


@pytest.fixture
def texts(tmp_path):
    """Files in folders, one zipped, one hidden, names that sort differently with and without their folders."""
    root = tmp_path / "texts"
    for name in ("a/one.txt", "a.b/two.txt", "a/deep/three.txt", "four.txt", ".hidden.txt", "a/.hidden/five.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(tiny.text(300, seed=len(name)) + name)
    (root / "a" / "six.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (root / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    return root


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "a/*", "a*/*.txt", "*/*.gz", "a/.hidden/*", "four.txt"])
def test_the_same_files_at_a_url_are_the_same_text(texts, bucket, pattern):
    upload(texts, bucket)
    here, there = (TextFiles(path=f"{root}/{pattern}") for root in (texts, bucket))
    assert list(here.documents()) == list(there.documents())
    tokenizer = Bytes().build(lambda: [])
    assert fingerprint(here, tokenizer) == fingerprint(there, tokenizer)


def test_lines_several_patterns_and_file_urls(texts, bucket):
    upload(texts, bucket)
    here = JsonLines(path=str(texts / "lines.jsonl"))
    assert list(here.documents()) == list(JsonLines(path=f"{bucket}/lines.jsonl").documents())
    patterns = ("a/*.txt", "four.txt")
    several = [TextFiles(path=tuple(f"{root}/{p}" for p in patterns)) for root in (texts, bucket, f"file://{texts}")]
    names = [[d.name for d in source.documents()] for source in several]
    assert names[0] == names[1] == names[2] == ["a/one.txt", "four.txt"]
    mixed = TextFiles(path=(str(texts / "four.txt"), f"{bucket}/a/one.txt"))
    assert len(list(mixed.documents())) == 2


def test_what_is_not_there_or_cannot_be_read_is_named(bucket):
    for path in (f"{bucket}/*.txt", f"{bucket}/none.txt", "memory://no-such-bucket/x"):
        with pytest.raises(UserError, match="data.source.path: memory://.*: no such file"):
            TextFiles(path=path).check()
    fsspec.filesystem("memory").pipe(f"{bucket}/x.txt.gz", b"not zipped")
    with pytest.raises(UserError, match="memory://bucket/x.txt.gz: cannot be read: Not a gzipped file"):
        list(TextFiles(path=f"{bucket}/x.txt.gz").documents())
    with pytest.raises(UserError, match="nosuch://x: Protocol not known: nosuch"):
        place("nosuch://x")


def test_a_missing_package_is_named(monkeypatch):
    def missing(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"gs://b/x: Please install gcsfs .* \(python -m pip install -e '\.\[gcs\]'\)"):
        place("gs://b/x")


def test_an_error_of_a_library_is_one_line_and_never_taken_for_absence(bucket, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("401:\nno rights")

    file = place(f"{bucket}/run/experiment.json")
    assert not file.is_file()
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refused)
    with pytest.raises(UserError, match="memory://bucket/run/experiment.json: 401: no rights"):
        file.is_file()


def test_names(bucket):
    folder = place("memory://bucket/a/")
    assert isinstance(folder, Remote)
    assert str(folder / "b.txt.gz") == "memory://bucket/a/b.txt.gz"
    assert (folder / "b.txt.gz").suffixes == [".txt", ".gz"]
    assert place(folder) is folder
    (folder / "x" / "y").write_text("1")
    assert [str(child) for child in folder.iterdir()] == ["memory://bucket/a/x"]
    assert folder.sizes() == {"x/y": 1}
    assert folder.is_dir() and not (folder / "z").exists()
