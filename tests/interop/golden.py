"""Golden files: what transformers computed for a small model of each family, for tests that have neither it nor PyTorch.

A file holds config.json as transformers wrote it, the names and shapes of the tensors, and the logits. The tensors
themselves follow from their names and shapes, so that a model of a hundred thousand numbers is a file of 10 kB.
tests/parity/write_golden.py writes them.
"""

import json
import zlib
from pathlib import Path

import numpy as np

from lmjax.interop.tensor_files import write_tensors

FOLDER = Path(__file__).parent / "golden"
VOCAB, TOKENS = 31, 40


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of about 1 over the square root of the width; around 1 where a norm's scale is due, which no file of
    theirs tells apart from a bias. RandomState: its numbers never change with NumPy's version."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    x = random.standard_normal(shape)
    if len(shape) == 1:
        return (0.3 * x + ("norm" in name or "ln_" in name) * name.endswith("weight")).astype(np.float32)
    wide = any(part in name for part in ("embed", "wte", "lm_head", "shared"))
    # T5's, whose scores are not divided by the root of the head's width
    narrow = name.endswith((".q.weight", ".k.weight"))
    return (x * (0.8 if wide else (0.7 if narrow else 1.6) / shape[-1] ** 0.5)).astype(np.float32)


def ids() -> np.ndarray:
    """(1, T) token ids."""
    return np.random.RandomState(0).randint(0, VOCAB, (1, TOKENS)).astype(np.int32)


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read(name: str, directory: Path) -> np.ndarray:
    """Lay the golden model of that name as a checkpoint directory; the logits of `ids` (T, V)."""
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(golden["config"]))
    write(directory, golden["tensors"])
    return np.array(golden["logits"])


def write(directory: Path, shapes: dict[str, list[int]]) -> None:
    """model.safetensors with the tensors of these names."""
    float32, files = np.dtype(np.float32), [(name, tuple(shape)) for name, shape in shapes.items()]
    write_tensors(directory, [(n, float32, s, lambda n=n, s=s: tensor(n, s)) for n, s in files], 10**9)
