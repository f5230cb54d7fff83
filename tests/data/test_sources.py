"""Sources give the right documents in a stable order; what is wrong with a file is said with its place."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from lmjax.data.sources import (
    Document,
    JsonLines,
    LastPart,
    PythonLibrary,
    TextFiles,
    WholeDocuments,
    _plain,
    json_line,
)
from lmjax.errors import UserError


def test_text_files_plain_and_gz_by_glob(tmp_path):
    (tmp_path / "b.txt").write_text("zwei\r\n")
    (tmp_path / "a").mkdir()
    with gzip.open(tmp_path / "a" / "c.txt.gz", "wt") as stream:
        stream.write("drei é")
    found = list(TextFiles(path=(f"{tmp_path}/*.txt", f"{tmp_path}/**/*.gz")).documents())
    assert found == [Document("a/c.txt.gz", "drei é"), Document("b.txt", "zwei\r\n")]


def test_names_do_not_depend_on_the_place(tmp_path):
    for place in ("x", "y/z"):
        (tmp_path / place).mkdir(parents=True)
        for name in ("1.txt", "2.txt"):
            (tmp_path / place / name).write_text(name)
    here, there = (list(TextFiles(path=f"{tmp_path}/{place}/*.txt").documents()) for place in ("x", "y/z"))
    assert here == there


def test_json_lines(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"body": "eins\u2028"}, ensure_ascii=False) + "\n\n" + json.dumps({"body": "zwei"}))
    found = [d.text for d in JsonLines(path=str(file), field="body").documents()]
    assert found == ["eins\u2028", "zwei"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "d.jsonl:2: not JSON"),
        ('["text"]', "d.jsonl:2: expected an object, not '\\[\"text\"\\]'"),
        ('{"text": "a\\ud83d"}', "d.jsonl:2: half a surrogate pair at character 1 of 'text'"),
        ('{"text": 5}', "d.jsonl:2: 'text' is '5'; expected a text"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "ok"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        list(JsonLines(path=str(file)).documents())


def test_bytes_that_are_not_utf8_are_named_by_offset(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"gut " + "schön".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt: not UTF-8 at byte 7 \(0xf6\)"):
        list(TextFiles(path=str(file)).documents())
    assert next(TextFiles(path=str(file), errors="replace").documents()).text == "gut sch\ufffdn"


def test_a_missing_file_and_a_damaged_gz_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\*\.txt: no such file"):
        TextFiles(path=f"{tmp_path}/none*.txt").check()
    (tmp_path / "x.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"x\.gz: cannot be read"):
        list(TextFiles(path=f"{tmp_path}/x.gz").documents())


def test_last_part_cuts_where_nanogpt_does():
    ((_, train), (_, held_out)) = LastPart().split([Document("x", "a" * 1_115_394)])
    assert (len(train.text), len(held_out.text)) == (1_003_854, 111_540)


def test_whole_documents_depend_on_the_name_alone():
    names = [f"{i}.txt" for i in range(2000)]
    split = {d.name: s for s, d in WholeDocuments(share=0.1).split(Document(n, "") for n in names)}
    other = {d.name: s for s, d in WholeDocuments(share=0.1).split(Document(n, "x") for n in reversed(names))}
    assert split == other
    assert list(split.values()).count("held_out") == pytest.approx(200, abs=40)


def test_python_library_is_there_without_tests():
    documents = list(PythonLibrary().documents())
    names = [d.name for d in documents]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert not any("/test/" in f"/{name}" or "site-packages" in name for name in names)
    assert sum(len(d.text) for d in documents) > 5_000_000


def test_packages_of_the_python_library_are_those_that_are_named():
    source = PythonLibrary(packages=("json", "argparse"), held_out=WholeDocuments(share=0.25))
    source.check()
    records = list(source.records())
    assert {record.fields["package"] for record in records} == {"json", "argparse"}
    of_all = {record.name: split for split, record in replace(source, packages=None).split_records()}
    assert {record.name: split for split, record in source.split_records()}.items() <= of_all.items()
    with pytest.raises(UserError, match="data.source.packages: no file of 'jsno' in this interpreter"):
        PythonLibrary(packages=("json", "jsno")).check()


def test_a_line_of_json_says_every_text():
    value = {"a": "\u00e9", "id": "half a pair \ud83d"}
    line = json_line(value)
    assert "\u00e9" in line and json.loads(line.encode()) == value


def test_nested_features_of_a_dataset_are_values_of_json():
    value = {"texts": np.array([b"x", "é".encode()], object), "numbers": [np.int64(3), {"a": b"y"}]}
    assert _plain(value, None, "n") == {"texts": ["x", "é"], "numbers": [3, {"a": "y"}]}
