"""Known bugs, put one at a time into a copy of the package: the test named for each must fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMIT = """\
            write_whole(scratch / MANIFEST, json.dumps(manifest.__dict__, indent=1))
            _publish(scratch, self.directory, step)
"""

# name: (file, text, replacement, the test that finds it)
MUTANTS = {
    "a double label shift": (
        "lmjax/data/windows.py", "targets_BT=np.ascontiguousarray(ids_BS[:, ahead:])",
        "targets_BT=np.ascontiguousarray(np.roll(ids_BS[:, ahead:], -1, axis=1))",
        "tests/data/test_windows.py::test_every_token_but_the_first_is_a_target_once",
    ),
    "no segment mask": (
        "lmjax/models/attention.py", "mask_BTS = mask_BTS & (segments_BT", "mask_BTS = mask_BTS | (segments_BT",
        "tests/data/test_windows.py::test_changing_one_document_leaves_the_others_logits_untouched",
    ),
    "positions not reset": (
        "lmjax/data/windows.py", "positions_BT = positions_BT - np.maximum", "positions_BT = positions_BT - 0 * np.maximum",
        "tests/data/test_windows.py::test_packed_equals_unpacked",
    ),
    "a mean of means": (
        "lmjax/train/step.py", "return loss.objective, loss", "return loss.mean(), Loss(loss.mean(), 1.0)",
        "tests/train/test_step.py::test_microbatches_with_unequal_token_counts_equal_one",
    ),
    "a dropout key reused in every microbatch": (
        "lmjax/train/step.py", "jax.random.fold_in(key, index)", "key",
        "tests/train/test_step.py::test_dropout_differs_between_steps_rows_and_microbatches",
    ),
    "a dropout key reused in every step": (
        "lmjax/train/step.py", "jax.random.fold_in(jax.random.key(experiment.seed), state.step)",
        "jax.random.key(experiment.seed)",
        "tests/train/test_step.py::test_each_step_has_its_own_dropout",
    ),
    "a capacity counted in each row alone": (
        "lmjax/models/moe.py", "(rows_CBE + (", "(0 * rows_CBE + (",
        "tests/models/test_moe.py::test_what_is_over_the_capacity_is_dropped_as_a_reference_says",
    ),
    "a forgotten causal mask": (
        "lmjax/models/attention.py", "return distance_BTS >= 0 if window is None",
        "return distance_BTS > -(10**9) if window is None",
        "tests/models/test_transformer.py::test_causal_by_gradient",
    ),
    "the data position not restored": (
        "lmjax/train/loop.py", "prepared.batches.ahead(done + 1, steps,",
        "((n + done, b) for n, b in prepared.batches.ahead(1, steps - done,",
        "tests/train/test_resume.py::test_a_damaged_checkpoint_is_passed_over_loudly_and_the_run_is_the_same",
    ),
    "a clamped key-value cache": (
        "lmjax/generate/decode.py", "jnp.where(done_B, S, lengths_B + index)", "jnp.where(done_B, S, lengths_B + index - 1)",
        "tests/generate/test_decode.py::test_every_greedy_token_is_the_most_probable_one_after_all_that_stands_before_it[llama]",
    ),
    "a continuation encoded without its context": (
        "lmjax/evaluate/likelihood.py", "prompt_ids(context + continuation, model.tokenizer)[len(before) :]",
        "model.tokenizer.encode(continuation)",
        "tests/evaluate/test_likelihood.py::test_white_space_moves_and_both_are_encoded_together",
    ),
    "a checksum not looked at": (
        "lmjax/checkpoint.py", "if sha256(file) != digest:", "if False:",
        "tests/test_checkpoint.py::test_damage_is_found_and_the_newest_good_step_is_used_loudly",
    ),
    "metrics that come after their checkpoint": (
        "lmjax/checkpoint.py", f"            self.before_commit()\n{COMMIT}", f"{COMMIT}            self.before_commit()\n",
        "tests/test_places.py::test_a_checkpoint_counts_when_all_else_is_there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_found(name, tmp_path):
    file, text, replacement, test = MUTANTS[name]
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("lmjax", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignore)
    for part in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path / part)
    source = (tmp_path / file).read_text()
    assert source.count(text) == 1, f"{file} has {source.count(text)} places {text!r}"
    mutated = source.replace(text, replacement)
    if replacement.startswith("((n + done"):
        mutated = mutated.replace("place, here):", "place, here)):")
    (tmp_path / file).write_text(mutated)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        test,
    ]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    # 1: tests ran and one failed; anything else is an error of another kind
    assert done.returncode == 1, done.stdout[-3000:]
    assert "1 failed" in done.stdout
    assert "SyntaxError" not in done.stdout
