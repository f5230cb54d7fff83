"""Safetensors: the same bytes as the library's, and nothing believed that the file does not bear out."""

import json
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lmjax.errors import UserError
from lmjax.interop.tensor_files import INDEX, TensorFile, open_tensors, write_tensors
from tests import tiny


def written(tmp_path, arrays, limit=10**9):
    tensors = [(name, x.dtype, x.shape, lambda x=x: x) for name, x in arrays.items()]
    write_tensors(tmp_path, tensors, limit)


ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float16),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def test_the_library_reads_what_we_write(tmp_path):
    written(tmp_path, ARRAYS)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
        for name in ("a", "scalar", "none", "transposed"):
            np.testing.assert_array_equal(file.get_tensor(name), ARRAYS[name])


def test_we_read_what_the_library_writes(tmp_path):
    plain = {name: np.ascontiguousarray(x) for name, x in ARRAYS.items() if name != "b"}
    safetensors.numpy.save_file(plain, tmp_path / "model.safetensors")
    for name, tensor in open_tensors(tmp_path).items():
        np.testing.assert_array_equal(tensor.view(), plain[name])
        assert tensor.dtype == plain[name].dtype


@pytest.mark.parametrize("limit", [1, 50, 10**6])
def test_shards_of_any_size_give_the_same(tmp_path, limit):
    written(tmp_path, ARRAYS, limit)
    assert (tmp_path / INDEX).exists() == (limit < 10**6)
    found = open_tensors(tmp_path)
    for name, x in ARRAYS.items():
        np.testing.assert_array_equal(found[name].view(), x)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_of(tmp_path, header, data=b"\0" * 8, length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return file


HOSTILE = {
    "an empty file": (b"", b"", 0),
    "a header longer than the file": ({}, b"", 2**40),
    "a header of 2^63 bytes": ({}, b"", 2**63),
    "no JSON": (b"{nonsense", b"", None),
    "deep nesting": (b"[" * 100_000, b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "a list": ([1], b"", None),
    "an unknown dtype": ({"x": entry("F4")}, b"\0" * 8, None),
    "a negative length": ({"x": entry(shape=(-2,))}, b"\0" * 8, None),
    "a product that overflows": ({"x": entry(shape=(2**62, 8))}, b"\0" * 8, None),
    "too few bytes": ({"x": entry(shape=(3,))}, b"\0" * 8, None),
    "beyond the end": ({"x": entry(offsets=(8, 16))}, b"\0" * 8, None),
    "overlapping": ({"x": entry(), "y": entry(offsets=(4, 12))}, b"\0" * 12, None),
    "a hole": ({"x": entry(), "y": entry(offsets=(12, 20))}, b"\0" * 20, None),
    "trailing bytes": ({"x": entry()}, b"\0" * 9, None),
    "offsets that are no numbers": ({"x": entry(offsets=("0", "8"))}, b"\0" * 8, None),
    "true as a length": ({"x": entry(shape=(True,), offsets=(0, 4))}, b"\0" * 4, None),
    "an entry twice": (b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 8, None),
    "a hundred thousand tensors of nothing where there is something": (
        {str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(100_000)},
        b"\0",
        None,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_one_line(tmp_path, name):
    header, data, length = HOSTILE[name]
    file = file_of(tmp_path, header, data, length)
    with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file") as caught:
        TensorFile(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_reading_a_hostile_header_takes_little_memory_and_time(tmp_path):
    """A gigabyte of holes, of which the header claims 2^40: within 600 MB and ten seconds, in a process of its own."""
    file = file_of(tmp_path, {"x": entry(shape=(2**38,), offsets=(0, 2**40))})
    with open(file, "r+b") as stream:
        stream.truncate(2**30)
    code = (
        "import resource, sys\nfrom pathlib import Path\nresource.setrlimit(resource.RLIMIT_AS, (600 * 2**20,) * 2)\nfrom lmjax.interop.tensor_files import TensorFile\n"
        "from lmjax.errors import UserError\n"
        "try: TensorFile(Path(sys.argv[1]))\nexcept UserError as e: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=tiny.ROOT, capture_output=True, text=True, timeout=10,
        env=tiny.environment_of_a_process() | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == "refused", done.stderr


@pytest.mark.parametrize(
    "place",
    ["../other/model.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "a\0b.safetensors", "sub/x.safetensors"],
)
def test_an_index_that_points_outside(tmp_path, place):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": place}}))
    with pytest.raises(UserError, match="is not the plain name of a safetensors file beside it"):
        open_tensors(tmp_path)


def test_a_link_out_of_the_directory(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    written(tmp_path / "outside", ARRAYS)
    (tmp_path / "inside" / "model.safetensors").symlink_to(tmp_path / "outside" / "model.safetensors")
    with pytest.raises(UserError, match="a link out of its directory"):
        open_tensors(tmp_path / "inside")


def test_links_as_the_hub_lays_them(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1234"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    written(blobs, ARRAYS)
    (snapshot / "model.safetensors").symlink_to("../../blobs/model.safetensors")
    assert set(open_tensors(snapshot)) == set(ARRAYS)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "index.json: not JSON"),
        ("[]", "index.json: expected an object of JSON"),
        ('{"weight_map": 3}', "expected a weight_map"),
        ('{"weight_map": {"x": 4}}', "expected a weight_map"),
        ("{}", "expected a weight_map"),
    ],
)
def test_a_broken_index(tmp_path, index, message):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(UserError, match=message):
        open_tensors(tmp_path)
    # shards that were left behind are not looked at where all is in one file
    written(tmp_path, ARRAYS)
    assert set(open_tensors(tmp_path)) == set(ARRAYS)


def test_an_index_and_shards_that_disagree(tmp_path):
    written(tmp_path, ARRAYS, 50)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"more": index["weight_map"]["a"]}}))
    with pytest.raises(UserError, match="more is not in"):
        open_tensors(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    name = index["weight_map"]["a"]
    (tmp_path / "twice.safetensors").write_bytes((tmp_path / name).read_bytes())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"other": "twice.safetensors"}}))
    with pytest.raises(UserError, match="a is in .* and in twice.safetensors"):
        open_tensors(tmp_path)


def test_pickles_are_refused_and_not_opened(tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="pytorch_model.bin: a pickle file, which can run code and is not read"):
        open_tensors(tmp_path)
    assert not canary.exists()
