"""The house: imports go down, files are short, Flax stays inside, loading runs no code, nothing is left open."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "lmjax").rglob("*.py"))

# a module imports only from lower floors or its own folder
FLOORS = {
    "errors": 0, "json_files": 0, "hosts": 0, "native_errors": 0, "sharding": 0, "trees": 0, "compilation": 0, "cache": 0,
    "places": 0, "lease": 0, "mirrors": 0,
    "tokenizers": 1, "models": 1,
    "data": 2, "trained": 2,
    "tasks": 3, "optim": 3,
    "configs": 4, "experiment": 4,
    "checkpoint": 5, "run_directory": 5,
    "interop": 6, "generate": 6,
    "loaded": 7, "batching": 7, "masked_model": 7, "text_to_text": 7, "classifier": 7, "inherited": 7, "language_model": 7,
    "interpret": 8,
    "verifying": 8, "evaluating": 8, "predicting": 8,
    "evaluate": 7,
    "train.state": 8, "train.step": 8,
    "plan": 9,
    "train.prepare": 10, "train.report": 10, "train.loop": 10, "train": 10,
    "inspecting": 10, "planning_verb": 10, "commands": 11,
}  # fmt: skip


def floor(module: str) -> int:
    """Of a name such as lmjax.train.step."""
    name = module.removeprefix("lmjax.")
    while name not in FLOORS:
        assert "." in name, f"{module} has no floor"
        name = name.rsplit(".", 1)[0]
    return FLOORS[name]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", PACKAGE, ids=module_name)
def test_imports_go_down(file):
    here = module_name(file)
    if here == "lmjax":
        return  # it only names where things are, lazily
    for target in imports(file):
        if target.startswith("lmjax."):
            same_folder = target.split(".")[:2] == here.split(".")[:2]
            assert same_folder or floor(target) <= floor(here), f"{here} imports {target}"


@pytest.mark.parametrize("file", [*PACKAGE, ROOT / "run.py"], ids=lambda f: f.name)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_no_drawers():
    assert not {f.stem for f in PACKAGE} & {"utils", "util", "common", "misc", "base", "helpers"}


def test_flax_stays_inside():
    outside = [f for f in PACKAGE if "models" not in f.parts and f.name != "sharding.py"]
    assert [f.name for f in outside if any(name.startswith("flax") for name in imports(f))] == []


def test_models_tasks_and_step_import_only_jax_flax_and_optax():
    code = (
        "import sys\n"
        "import lmjax.models.zoo, lmjax.tasks.causal_lm, lmjax.optim, lmjax.train.state, lmjax.train.step\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # orbax and rich come with flax
    wrong = {"grain", "tensorflow", "torch", "sentencepiece", "tokenizers", "pydantic", "tensorboardX"}
    assert not wrong & set(loaded.split())


def test_the_default_path_needs_neither_tensorflow_nor_pytorch():
    code = "import sys, lmjax.train.loop\nprint([m for m in ('tensorflow', 'torch', 'tensorflow_datasets') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_loading_never_runs_code():
    """Only an experiment file, which is a program, is run."""
    banned = re.compile(r"import pickle|allow_pickle=True|\beval\(|\bexec\(|torch\.load|yaml\.load|shell=True")
    hits = [(f.name, line) for f in PACKAGE for line in f.read_text().splitlines() if banned.search(line)]
    assert hits == []
    assert [f.name for f in PACKAGE if "runpy" in f.read_text()] == ["experiment.py"]


def test_nothing_is_left_open():
    marks = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
    assert [f.name for f in PACKAGE if marks.search(f.read_text())] == []


def test_every_public_module_and_class_says_what_it_is():
    for file in PACKAGE:
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                public = [n for n in node.body if isinstance(n, ast.FunctionDef)]
                assert ast.get_docstring(node) or not public, f"{file.name}: {node.name}"
