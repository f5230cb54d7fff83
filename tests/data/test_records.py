"""Tables, parallel texts and SQuAD's files as records; what is wrong is said with file and line."""

import gzip
import json

import pytest

from lmjax.data.mixture import read_as
from lmjax.data.records import Parallel, Squad, Table
from lmjax.data.sources import JsonLines, LastPart, OtherFiles, Record, TextFiles, WholeDocuments
from lmjax.errors import UserError


def write(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def damaged(folder):
    """A zipped file of which bytes in the middle are lost."""
    content = bytearray(gzip.compress(bytes(range(256)) * 9))
    content[20:40] = b"\xff" * 20
    (folder / "x.jsonl.gz").write_bytes(content)
    return str(folder / "x.jsonl.gz")


def fields(source):
    return [record.fields for record in source.records()]


def test_tables(tmp_path):
    tabs = write(tmp_path, "a.tsv", 'the "film"\t1\r\n  \n\nplain, bad\t0\n\t\n')
    rows = [{"text": 'the "film"', "label": "1"}, {"text": "plain, bad", "label": "0"}, {"text": "", "label": ""}]
    assert fields(Table(path=tabs, columns=("text", "label"))) == rows
    commas = write(tmp_path, "b.csv", '\ufefftext,label\n"a ""b"",\nc",1\n  \nd,0\n')
    found = list(Table(path=commas).records())
    assert [record.fields for record in found] == [{"text": 'a "b",\nc', "label": "1"}, {"text": "d", "label": "0"}]
    assert [record.where for record in found] == [f"{commas}:2", f"{commas}:5"]
    assert fields(Table(path=write(tmp_path, "d.csv", "a,b\n" + "x" * 200_000 + ',""\n')))[0]["b"] == ""
    assert fields(Table(path=write(tmp_path, "e.csv", 'a\n""\n'))) == [{"a": ""}]
    with gzip.open(tmp_path / "c.csv.gz", "wt") as stream:
        stream.write("x\n7\n")
    assert fields(Table(path=str(tmp_path / "c.csv.gz"))) == [{"x": "7"}]
    assert [d.text for d in Table(path=commas).documents()] == ['a "b",\nc', "d"]


def test_a_mark_at_the_beginning_of_a_file_is_no_text(tmp_path):
    for name, source, expected in (
        ("a.txt", TextFiles, {"text": "x", "file": "a.txt"}),
        ("a.jsonl", JsonLines, {"text": "x"}),
        ("a.tsv", Table, {"text": "x"}),
    ):
        content = {"a.txt": "x", "a.jsonl": '{"text": "x"}', "a.tsv": "text\nx\n"}[name]
        assert fields(source(path=write(tmp_path, name, "\ufeff" + content))) == [expected]


def test_parallel_texts_keep_lines_together(tmp_path):
    # U+2028 ends no line, and an empty line is one
    source, target = write(tmp_path, "a.en", "one\u2028more\n\nthree\n"), write(tmp_path, "a.de", "eins\n\ndrei\n")
    expected = [("one\u2028more", "eins"), ("", ""), ("three", "drei")]
    assert [(f["source"], f["target"]) for f in fields(Parallel(path=(source, target)))] == expected


def test_squad(tmp_path):
    answer = {"text": "Paris", "answer_start": 0}
    content = {"data": [{"paragraphs": [{"context": "Paris is big.", "qas": [{"id": 7, "question": "What?", "answers": [answer]}]}]}]}  # fmt: skip
    (record,) = Squad(path=write(tmp_path, "s.json", json.dumps(content))).records()
    assert record.fields == {"id": "7", "context": "Paris is big.", "question": "What?", "answers": [answer]}
    assert record.name == "s.json:0:0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: Table(path=write(t, "x.tsv", "a\tb\n1\n")), r"x\.tsv:2: 1 fields; expected a, b"),
        (lambda t: Table(path=write(t, "x.csv", 'a,b\n"1,2\n')), r"x\.csv:2: not a row of a \.csv file"),
        (
            lambda t: Parallel(path=(write(t, "x.en", "a\nb\n"), write(t, "x.de", "c\n"))),
            r"x\.en has 2 lines and .*x\.de 1; expected as many",
        ),
        (
            lambda t: Table(path=write(t, "x.csv", "a,b,a\n1,2,3\n")),
            r"x\.csv:1: the columns are a, b, a; expected differ",
        ),
        (
            lambda t: Table(path=write(t, "x.tsv", "a\tb\n1\t2\n"), columns=("a", "b")),
            r"x\.tsv:1: the names of the columns; expected data\.source\.columns=none",
        ),
        (lambda t: Squad(path=write(t, "x.json", "[" * 99_999)), r"x\.json: not in SQuAD's format: maximum recursion"),
        (lambda t: JsonLines(path=damaged(t)), r"x\.jsonl\.gz: cannot be read: .*invalid"),
        (lambda t: Squad(path=write(t, "x.json", '{"data": [')), r"x\.json: not in SQuAD's format: Expecting value"),
        (
            lambda t: Squad(path=write(t, "x.json", '{"data": [{}]}')),
            r"x\.json: article 0: not in SQuAD's format: no field 'paragraphs'",
        ),
        (
            lambda t: Squad(
                path=write(t, "x.json", '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 1}]}]}]}')
            ),
            r"x\.json: article 0, paragraph 0, question 0: not in SQuAD's format: no field 'question'",
        ),
        (
            lambda t: Squad(path=write(t, "x.json", '{"data": [{"paragraphs": {"context": "c"}}]}')),
            r"x\.json: article 0: not in SQuAD's format: 'paragraphs' is .*; expected a list",
        ),
        (lambda t: JsonLines(path=write(t, "x.jsonl", '{"a": 1}\n[2]\n')), r"x\.jsonl:2: expected an object"),
    ],
)
def test_mistakes_are_named(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        list(make(tmp_path).records())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": "x"}, "f:3: no field 'text'; it has 'body'"),
        ({"text": 5}, "f:3: 'text' is '5'; expected a text"),
        ({"text": "a\ud83d"}, "f:3: half a surrogate pair at character 1 of 'text'"),
    ],
)
def test_a_field_that_is_no_text_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        Record("n", "f:3", fields).text("text")


def test_what_is_held_out(tmp_path):
    train = write(tmp_path, "train.tsv", "".join(f"text {i}\t{i % 2}\n" for i in range(100)))
    dev = write(tmp_path, "dev.tsv", "other\t1\n")

    def splits(held_out):
        source = Table(path=train, columns=("text", "label"), held_out=held_out)
        return [(split, record.fields["text"]) for split, record in source.split_records()]

    assert splits(LastPart(share=0.1))[89:91] == [("train", "text 89"), ("held_out", "text 90")]
    assert splits(OtherFiles(path=dev))[-1] == ("held_out", "other")
    assert {split for split, _ in splits(OtherFiles(path=dev))[:-1]} == {"train"}
    held_out = {text for split, text in splits(WholeDocuments(share=0.3)) if split == "held_out"}
    assert 15 < len(held_out) < 45
    with pytest.raises(UserError, match="nope.tsv: no such file"):
        Table(path=train, held_out=OtherFiles(path="nope.tsv")).check()


def test_a_file_is_read_as_the_source_reads_its_own(tmp_path):
    table = Table(path="train.tsv", columns=("text", "label"))
    assert read_as(table, "test.tsv") == Table(path="test.tsv", columns=("text", "label"))
    assert read_as(table, "test.jsonl") == JsonLines(path="test.jsonl")
    assert read_as(Parallel(path=("a", "b")), "test.tsv") == Table(path="test.tsv")
    pair = read_as(Parallel(path=("a", "b")), "c.en,c.de")
    assert pair.path == ("c.en", "c.de")
