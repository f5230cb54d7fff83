"""The plan beside the compiler, and beside a process that really runs the step."""

import functools
import json
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from lmjax.errors import UserError
from lmjax.models.lora import LoRA
from lmjax.optim import AdamW, Lion, Muon
from lmjax.plan import planning, report
from lmjax.plan.collectives import by_kind
from lmjax.plan.devices import Topology, measured, of_this_machine, topology_of
from lmjax.plan.planning import largest_batch, plan, with_known_vocab
from lmjax.plan.remedies import changes
from lmjax.sharding import Mesh, build_mesh
from lmjax.tokenizers import Bytes, Characters, SentencePiece
from tests import tiny


def experiment(cfg=None, **changes):
    cfg = tiny.llama(vocab=96, width=64, context=16) if cfg is None else cfg
    return tiny.experiment("unused", model=cfg, batch_size=16, microbatches=1, **changes)


@pytest.fixture(scope="module")
def here():
    return of_this_machine()


MESHES = {"data": Mesh(), "fsdp": Mesh(data=1, fsdp=8), "mixed": Mesh(data=1, fsdp=2, tensor=2, sequence=2)}


@pytest.mark.parametrize(("mesh", "optimizer"), [("data", AdamW()), ("fsdp", Lion()), ("mixed", Muon())])
def test_planned_bytes_are_the_compilers(mesh, optimizer, here):
    """Exactly: state and batch, and the 4 bytes of the step's number."""
    made = plan(experiment(mesh=MESHES[mesh], optimizer=optimizer), here)
    size = made.size
    assert made.figures.arguments == size.params + size.optimizer + size.batch + 4
    assert made.needed > made.figures.arguments
    assert made.fits
    if mesh == "fsdp":
        kinds = by_kind(made.collectives)
        assert kinds["all-gather"][1] > 0
    text = "\n".join(report.lines(made, price=2.0))
    assert f"parameters {size.params:,} bytes" in text
    assert "fits" in text


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ("data", {"freeze": ("embedding", "blocks/attention/*")}),
        ("mixed", {"adapter": LoRA(weights=("blocks/*/kernel",), train=("*/scale",)), "init_from": "base"}),
    ],
    ids=["freeze", "adapter"],
)
def test_planned_bytes_are_the_compilers_where_a_part_is_trained(mesh, changes, here):
    """Frozen parameters are arguments without moments."""
    part = experiment(mesh=MESHES[mesh], **changes)
    made = plan(part, here)
    size = made.size
    # devices that are not here: nothing is compiled
    whole, counted = (plan(one, topology_of("h100:8")) for one in (experiment(mesh=MESHES[mesh]), part))
    assert counted.size == size
    assert made.figures.arguments == size.params + size.optimizer + size.batch + 4
    # two moments, and AdamW's and the schedule's number of the step
    assert size.optimizer == 2 * size.trained + 8 < 0.9 * whole.size.optimizer
    assert size.params - size.trained <= whole.size.params
    assert counted.roofline.compute < whole.roofline.compute


def test_the_peak_is_what_a_process_takes():
    done = subprocess.run(
        [sys.executable, "-m", "tests.plan.resident"], env=tiny.environment_of_a_process() | {"MALLOC_ARENA_MAX": "2"}, cwd=tiny.ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout)
    assert figures["rise"] == pytest.approx(figures["planned"], rel=0.10)


def small(here, memory: float) -> Topology:
    return replace(here, device=replace(here.device, memory=memory))


def test_changes_keep_the_experiment_valid():
    mesh = Mesh(data=4, fsdp=2)
    # counted, not compiled
    made = replace(plan(experiment(mesh=mesh), topology_of("h100:8")), mesh=build_mesh(mesh))
    for overrides, changed in changes(made):
        for override in overrides:
            path, _, value = override.partition("=")
            found = changed
            for name in path.split("."):
                found = getattr(found, name)
            assert str(found) == value


def test_search_finds_the_largest_batch(here, monkeypatch):
    # three batches are asked for again, of devices with other memory
    monkeypatch.setattr(planning, "compile_train_step", functools.cache(planning.compile_train_step))
    one = experiment(tiny.gpt2(vocab=96, context=64, layers=1), mesh=Mesh(data=8))
    sizes = {rows: plan(replace(one, batch_size=8 * rows), here).needed for rows in (3, 4)}
    assert sizes[3] < sizes[4]
    tried = []
    best = largest_batch(one, small(here, (sizes[3] + sizes[4]) / 2), tried.append)
    assert best.experiment.batch_size == 24
    assert [p.experiment.batch_size for p in tried] == [8, 16, 32, 24]
    assert largest_batch(one, small(here, 1000.0), tried.append) is None


def test_devices_that_are_not_here_are_counted():
    made = plan(replace(experiment(), mesh=Mesh(data=1, fsdp=4, tensor=2)), topology_of("h100:8"))
    assert made.figures is None
    assert not made.compiled
    assert made.needed > made.size.params + made.size.optimizer
    assert {one.kind for one in made.collectives} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert "estimate from counts" in report.verdict(made)


def test_planning_knows_the_vocabulary_without_files():
    unknown = replace(experiment(), model=replace(experiment().model, vocab=None))
    assert with_known_vocab(unknown).model.vocab == 258
    assert with_known_vocab(replace(unknown, tokenizer=Bytes(mask=True))).model.vocab == 259
    assert with_known_vocab(replace(unknown, tokenizer=SentencePiece(vocab_size=999))).model.vocab == 999
    with pytest.raises(UserError, match=r"--model\.vocab=N"):
        with_known_vocab(replace(unknown, tokenizer=Characters()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "expected here, or KIND:SHAPE"),
        ("v5p:2x2", "expected 3 number"),
        ("v5e:32x16", "from 1 to 16x16"),
        ("v5e:0x4", "from 1 to 16x16"),
        ("h100:0", "expected from 1 to"),
        ("v5e", "expected here"),
    ],
)
def test_topologies_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message):
        topology_of(name)


def test_a_mesh_that_does_not_divide_names_the_nearest():
    with pytest.raises(UserError, match=r"kv_heads of size 4 cannot be split 8 ways \(tensor\); 4 ways would do"):
        plan(experiment(tiny.llama(vocab=96, kv_heads=4), mesh=Mesh(data=1, tensor=8)), topology_of("h100:8"))


def test_rates_are_measured_where_the_table_has_none():
    device = measured(jax.devices()[0], 8)
    assert 1e8 < device.peak32 < 1e14
    assert 1e7 < device.bandwidth < 1e12
