"""Safetensors files (huggingface.co/docs/safetensors): a header of JSON, then bytes. Read as views of the mapped file,
written tensor by tensor.

Reading is our own because the library copies each tensor, knows no bfloat16 in NumPy and takes a repeated name for one.
Nothing of a header is believed before it is checked against the file's size.
"""

import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.json_files import read_object

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
    "U16": np.dtype(np.uint16), "U32": np.dtype(np.uint32), "U64": np.dtype(np.uint64),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# of PEFT
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. start: in bytes from the beginning of the file."""

    file: "TensorFile"
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def view(self) -> np.ndarray:
        """The tensor, read-only, in the mapped file: pages are read when they are used."""
        count = math.prod(self.shape)
        flat = np.frombuffer(self.file.mapped, self.dtype, count, self.start) if count else np.empty(0, self.dtype)
        return flat.reshape(self.shape)


class TensorFile:
    """One safetensors file. Raises UserError, naming the file, where its header is not what its bytes are."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.size = path.stat().st_size
            self.tensors = self._tensors(self._header())
        except OSError as error:
            raise UserError(f"{path_text(path)}: {error.strerror}") from None

    @cached_property
    def mapped(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, mode="r")

    def _wrong(self, reason: str) -> UserError:
        return UserError(f"{path_text(self.path)}: not a whole safetensors file: {reason}")

    def _header(self) -> dict:
        with open(self.path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if self.size < 8 or not 2 <= length <= min(HEADER_LIMIT, self.size - 8):
                raise self._wrong(f"it has {self.size} bytes and gives its header {length}")
            content = stream.read(length)
        self.data = 8 + length
        try:
            header = json.loads(content.decode("utf-8"), object_pairs_hook=self._distinct)
        except (ValueError, RecursionError):
            raise self._wrong("its header is not JSON") from None
        if not isinstance(header, dict):
            raise self._wrong("its header is not a JSON object")
        header.pop("__metadata__", None)
        return header

    def _distinct(self, pairs: list) -> dict:
        """An object of JSON; a name that stands in it twice is an error, of which JSON keeps the last."""
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise self._wrong(f"it has {twice!r} twice")
        return found

    def _tensors(self, header: dict) -> dict[str, Tensor]:
        found = {}
        for name, entry in header.items():
            try:
                dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
                if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop)):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise self._wrong(f"{name!r} has no known dtype, shape and data_offsets") from None
            size = math.prod(shape) * dtype.itemsize
            if stop - start != size:
                raise self._wrong(f"{name!r} of {dtype} {shape} needs {size} bytes and has {stop - start}")
            found[name] = Tensor(self, name, dtype, shape, self.data + start)
        end = self.data
        for tensor in sorted(found.values(), key=lambda tensor: (tensor.start, math.prod(tensor.shape))):
            if tensor.start != end:
                raise self._wrong(f"{tensor.name!r} begins at byte {tensor.start}; expected {end}")
            end += math.prod(tensor.shape) * tensor.dtype.itemsize
        if end != self.size:
            raise self._wrong(f"its tensors end at byte {end} of {self.size}")
        return found


def has_tensors(directory: Path) -> bool:
    """Whether a model's tensors lie there, and not an adapter's alone."""
    return (directory / INDEX).is_file() or bool(_any(directory))


def _any(directory: Path) -> list[Path]:
    return sorted(file for file in directory.glob("*.safetensors") if file.name != ADAPTER)


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory by name, from one file or, where there is no model.safetensors, from the
    shards that an index names (transformers' order). Raises UserError for pickle files, an index that points
    elsewhere, and a tensor that is missing or there twice."""
    files = [directory / SINGLE]
    if not files[0].is_file():
        if (directory / INDEX).is_file():
            return _sharded(directory)
        files = _any(directory)
    if len(files) == 1:
        return beside(files[0], directory).tensors
    if files:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"{path_text(directory)}: {names}: several files and no {INDEX} that says how they belong together"
        )
    if pickles := sorted(f.name for end in ("bin", "pt", "pth", "ckpt", "pkl") for f in directory.glob(f"*.{end}")):
        raise UserError(
            f"{path_text(directory / pickles[0])}: a pickle file, which can run code and is not read; expected "
            f"safetensors (in transformers: model.save_pretrained(...))"
        )
    raise UserError(f"{path_text(directory)}: no {SINGLE} and no {INDEX}")


def _sharded(directory: Path) -> dict[str, Tensor]:
    index = directory / INDEX
    places = read_object(index, HEADER_LIMIT, "an index of tensors").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{path_text(index)}: expected a weight_map of tensor names to file names")
    found = {}
    for name in sorted(set(places.values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(f"{path_text(index)}: {name!r} is not the plain name of a safetensors file beside it")
        for tensor in beside(directory / name, directory).tensors.values():
            if tensor.name in found:
                other = found[tensor.name].file.path.name
                raise UserError(f"{path_text(directory)}: {tensor.name} is in {other} and in {name}")
            found[tensor.name] = tensor
    for name, place in places.items():
        if name not in found or found[name].file.path.name != place:
            raise UserError(f"{path_text(index)}: {name} is not in {place!r}, where the index has it")
    return found


def beside(file: Path, directory: Path) -> TensorFile:
    """A file of a directory. A link may lead out of that only into the store of blobs beside it, as huggingface_hub
    lays them. Raises UserError as TensorFile, and for a link that does not."""
    here, target = directory.resolve(), file.resolve()
    if not (target.is_relative_to(here) or target.is_relative_to(here.parent.parent / "blobs")):
        raise UserError(f"{path_text(file)}: a link out of its directory, to {path_text(target)}")
    return TensorFile(file)


def write_tensors(
    directory: Path, tensors: list[tuple[str, np.dtype, tuple[int, ...], object]], limit: int, single: str = SINGLE
) -> None:
    """Write (name, dtype, shape, function that gives the array) in their order, into files of at most `limit` bytes (a
    larger tensor has one of its own), and an index where that is more than one. single: the name of the only file. One
    tensor is in memory at a time."""
    shards, room = [[]], limit
    for tensor in tensors:
        size = _bytes(tensor)
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= size
    count = len(shards)
    names = [single] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        _write(directory / name, shard)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(map(_bytes, tensors))},
            "weight_map": {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(tensor) -> int:
    _, dtype, shape, _ = tensor
    return math.prod(shape) * dtype.itemsize


def _write(file: Path, tensors: list) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        name, dtype, shape, _ = tensor
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + _bytes(tensor)]}
        end += _bytes(tensor)
    content = json.dumps(header, separators=(",", ":")).encode()
    # the data begins at a multiple of 64 bytes, so that a reader can use it where it lies
    content += b" " * (-(8 + len(content)) % 64)
    with open(file, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        for name, dtype, shape, array_of in tensors:
            array = np.asarray(array_of(), order="C")
            assert array.shape == shape and array.dtype == dtype, name
            stream.write(array.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
