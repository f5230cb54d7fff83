"""Laws of the train step's program for TPU: where weights are gathered, what attention is, how much memory it takes."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests import tiny
from tests.pods import program
from tests.pods.compiled import EXPERIMENTS

WRONG = "the formula of attention"
NAMES = [name for name in EXPERIMENTS if name != WRONG]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """name -> (text, figures), all compiled by one process, for a pod as `plan` has it."""
    folder = tmp_path_factory.mktemp("programs")
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment |= {"PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, "-m", "tests.pods.compiled", str(folder)]
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    return {name: ((folder / f"{name}.txt").read_text(), figures[name]) for name in figures}


def weights_out_of_place(text: str, experiment) -> list[program.Gather]:
    """Gatherings that they must not be: of more than one matrix of one layer, or of a matrix and not in the loop over
    layers. The embedding and the unembedding, gathered once for the loss, and the positions may be whole."""
    model, mesh = experiment.model, experiment.mesh
    D, V, T = model.width, model.vocab, model.context
    heads, kv_heads = model.heads * model.head_width, model.n_kv_heads * model.head_width
    whole = {V * D // mesh.tensor, T * D}
    matrices = [D * model.hidden, D * heads, D * kv_heads]
    rows = experiment.microbatch_size // (mesh.data * mesh.fsdp)
    found = []
    for one in program.gathers(text):
        in_a_layer = model.layers in one.loops
        activations = any(side % T == 0 for side in one.sides) and one.numbers != T * D
        if activations or (rows in one.sides and one.loops and not in_a_layer):
            # of a layer, or of the loss's places
            continue
        too_large = one.numbers > max(*matrices, D * (heads + 2 * kv_heads))
        too_early = not in_a_layer and one.numbers >= min(matrices) // 2 and one.numbers not in whole
        if too_early or (in_a_layer and too_large):
            found.append(one)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_layers_weights_are_gathered_in_the_layer(name, compiled):
    text, model = compiled[name][0], EXPERIMENTS[name].model
    assert weights_out_of_place(text, EXPERIMENTS[name]) == []
    # and in it they are: both matrices of the feed-forward layer, once forward and once backward
    width = model.width * model.hidden // EXPERIMENTS[name].mesh.tensor
    assert sum(one.numbers == width and model.layers in one.loops for one in program.gathers(text)) >= 4


def test_a_gathering_of_all_layers_or_outside_the_loop_is_seen(compiled):
    """The same text with one gathering made larger, and with one moved before the loops."""
    text, experiment = compiled["gpt products"][0], EXPERIMENTS["gpt products"]
    model = experiment.model
    D, F, L = model.width, model.hidden, model.layers
    stacked = text.replace(f"= bf16[1,{D},{F}]", f"= bf16[{L},{D},{F}]")
    assert {one.sides for one in weights_out_of_place(stacked, experiment)} == {(L, D, F)}
    line = next(line for line in text.splitlines() if re.search(rf"= bf16\[1,{D},{F}\]\S* all-gather", line))
    entry = re.search(r"^ENTRY .*\{$", text, re.M)[0]
    moved = text.replace(entry, f"{entry}\n{line}")
    assert [(one.sides, one.loops) for one in weights_out_of_place(moved, experiment)] == [((1, D, F), ())]


def scores(text: str, length: int) -> set[tuple[int, ...]]:
    """Arrays that have the length twice, or a block of queries beside it, as scores do."""
    return {sides for sides in program.arrays(text) if len(sides) > 2 and sides.count(length) > 1}


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_the_kernel_forward_and_backward(name, compiled):
    text, model = compiled[name][0], EXPERIMENTS[name].model
    kernels = program.kernels(text)
    forward = [loops for kernel, loops in kernels if "splash_mha_fwd" in kernel]
    backward = [loops for kernel, loops in kernels if "splash_mha_dkv" in kernel]
    # only where its output was not kept does the forward kernel run again
    assert (len(forward), len(backward)) == (2 if model.remat == "everything" else 1, 1)
    assert all(model.layers in loops for loops in forward + backward)
    assert scores(text, model.context) == set()


def test_the_formula_of_attention_is_no_kernel(compiled):
    text, model = compiled[WRONG][0], EXPERIMENTS[WRONG].model
    assert program.kernels(text) == []
    assert scores(text, model.context)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_the_policy_keeps_and_what_must_be_beside_it(name, compiled):
    figures = compiled[name][1]
    assert figures["wanted"]["kept"] > 0.5 * figures["total"]
    assert figures["temporaries"] == pytest.approx(figures["total"], rel=0.15)


def test_a_policy_that_keeps_twice_is_seen(compiled):
    """Attention's output kept under two names, as it once was, or the residual stream whole on each device of "tensor",
    is out of the bound."""
    figures, cfg = compiled["llama attention"][1], EXPERIMENTS["llama attention"].model
    kept_once = 2 * EXPERIMENTS["llama attention"].batch_size * cfg.context * cfg.layers * cfg.width / 4
    assert figures["temporaries"] + kept_once > 1.15 * figures["total"]
