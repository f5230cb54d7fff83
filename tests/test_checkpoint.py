"""Checkpoints: whole, verified, kept and thrown away as promised, on any mesh."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import checkpoint
from lmjax.checkpoint import Checkpoints, Damaged
from lmjax.errors import UserError
from lmjax.sharding import Mesh, build_mesh

PARAMS = {"a": {"kernel": jnp.arange(64.0).reshape(8, 8)}, "b": jnp.float32(3)}
REST = {"step": jnp.int32(7), "opt": (jnp.ones(5), jnp.zeros((2, 3), jnp.bfloat16))}


def abstract(tree, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def save(directory, *saves, keep=2):
    directory.mkdir(exist_ok=True)
    with Checkpoints(directory, keep) as checkpoints:
        for step, loss in saves:
            checkpoints.save(step, jax.tree.map(lambda x, s=step: x + s, PARAMS), REST, loss)


def test_round_trip_is_bitwise_and_params_load_alone(tmp_path):
    save(tmp_path / "c", (5, None))
    manifest = checkpoint.newest_good(tmp_path / "c", print)
    params, rest = checkpoint.restore(tmp_path / "c", manifest, abstract(PARAMS), abstract(REST))
    assert jax.tree.structure(rest) == jax.tree.structure(REST)
    for got, put in zip(
        jax.tree.leaves((params, rest)), jax.tree.leaves((jax.tree.map(lambda x: x + 5, PARAMS), REST))
    ):
        assert got.dtype == put.dtype
        assert (np.asarray(got) == np.asarray(put)).all()
    alone, nothing = checkpoint.restore(tmp_path / "c", manifest, abstract(PARAMS))
    assert nothing is None
    assert (alone["a"]["kernel"] == params["a"]["kernel"]).all()


def test_state_may_be_donated_while_it_is_written(tmp_path):
    (tmp_path / "c").mkdir()
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    params = {"w": jnp.arange(4_000_000.0)}
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(1, params, REST, None)
        for _ in range(5):
            params = overwrite(params)
    manifest = checkpoint.newest_good(tmp_path / "c", print)
    loaded, _ = checkpoint.restore(tmp_path / "c", manifest, abstract(params))
    assert (np.asarray(loaded["w"]) == np.arange(4_000_000.0)).all()


@pytest.mark.parametrize("mesh", [Mesh(data=8), Mesh(data=1, fsdp=8), Mesh(data=2, fsdp=2, tensor=2)])
def test_restores_onto_any_mesh(tmp_path, mesh):
    built = build_mesh(Mesh(data=1, fsdp=8))
    split = jax.sharding.NamedSharding(built, jax.sharding.PartitionSpec("fsdp"))
    (tmp_path / "c").mkdir()
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(1, {"w": jax.device_put(jnp.arange(64.0).reshape(8, 8), split)}, REST, None)
    target = jax.sharding.NamedSharding(build_mesh(mesh), jax.sharding.PartitionSpec(None, ("data", "fsdp")))
    manifest = checkpoint.newest_good(tmp_path / "c", print)
    loaded, _ = checkpoint.restore(
        tmp_path / "c", manifest, {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=target)}
    )
    assert loaded["w"].sharding.is_equivalent_to(target, 2)
    assert (np.asarray(loaded["w"]) == np.arange(64.0).reshape(8, 8)).all()


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5), (6, None)]
    save(tmp_path / "c", *losses, keep=2)
    assert checkpoint.steps_on_disk(tmp_path / "c") == [2, 5, 6]
    assert checkpoint.chosen(tmp_path / "c", "best", print).step == 2
    assert checkpoint.chosen(tmp_path / "c", None, print).step == 6
    with pytest.raises(UserError, match=r"--step 4: .* has the steps 2, 5, 6"):
        checkpoint.chosen(tmp_path / "c", 4, print)


def flip_a_bit(folder):
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(folder):
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(folder):
    next(f for f in folder.rglob("*") if f.is_file() and "ocdbt" in str(f)).unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def half_written(folder):
    (folder / "manifest.json").unlink()


def broken_manifest(folder):
    (folder / "manifest.json").write_text('{"format": 1, "st')


def another_steps_manifest(folder):
    """As in a directory that was renamed."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step": 7}))


def manifest_of_other_types(folder):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": {"x": [1]}}))


DAMAGE = [
    flip_a_bit, truncate, lose_a_file, empty, half_written, broken_manifest, another_steps_manifest,
    manifest_of_other_types,
]  # fmt: skip


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """Of the steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "c"
    save(directory, (1, None), (2, None))
    return directory


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_newest_good_step_is_used_loudly(two_saved, tmp_path, damage):
    shutil.copytree(two_saved, tmp_path / "c")
    damage(tmp_path / "c" / "2")
    said = []
    assert checkpoint.newest_good(tmp_path / "c", said.append).step == 1
    assert len(said) == 1
    assert said[0].startswith("going back to step 1: damaged checkpoint")
    assert "/2" in said[0]


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_no_checkpoint_is_good_it_stops(two_saved, tmp_path, damage):
    shutil.copytree(two_saved / "1", tmp_path / "c" / "1")
    damage(tmp_path / "c" / "1")
    with pytest.raises(UserError, match="no good checkpoint is left"):
        checkpoint.newest_good(tmp_path / "c", print)


def test_every_single_file_is_under_a_checksum(tmp_path):
    save(tmp_path / "c", (1, None))
    files = [f for f in (tmp_path / "c" / "1").rglob("*") if f.is_file() and f.name != "manifest.json"]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"x")
        with pytest.raises(Damaged, match=file.name):
            checkpoint.verify(tmp_path / "c", 1)
        file.write_bytes(content)
    assert checkpoint.verify(tmp_path / "c", 1).step == 1


def test_a_newer_format_is_not_passed_over(tmp_path):
    save(tmp_path / "c", (1, None), (2, None))
    file = tmp_path / "c" / "2" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="written in format 99 by a newer lmjax"):
        checkpoint.newest_good(tmp_path / "c", print)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"c": jnp.zeros(2)}, r"params/c is missing, the experiment wants float32 \(2,\)"),
        (lambda p: {"a": p["a"]}, r"params/b is float32 \(\), the experiment wants missing"),
        (lambda p: p | {"b": jnp.zeros(2)}, r"params/b is float32 \(\), the experiment wants float32 \(2,\)"),
        (lambda p: p | {"b": jnp.bfloat16(0)}, r"params/b is float32 \(\), the experiment wants bfloat16 \(\)"),
    ],
)
def test_other_leaves_than_expected_are_named(tmp_path, change, message):
    save(tmp_path / "c", (1, None))
    manifest = checkpoint.newest_good(tmp_path / "c", print)
    with pytest.raises(UserError, match=message):
        checkpoint.restore(tmp_path / "c", manifest, abstract(change(PARAMS)))


def test_a_failed_save_is_told_and_leaves_the_earlier_ones(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    save(tmp_path / "c", (1, None))
    checkpoints = Checkpoints(tmp_path / "c", 2)
    monkeypatch.setattr(checkpoint, "write_whole", full)
    checkpoints.save(2, PARAMS, REST, None)
    with pytest.raises(UserError, match="could not be written: No space left.*; earlier ones are intact"):
        checkpoints.wait()
    assert checkpoint.newest_good(tmp_path / "c", lambda _: None).step == 1


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    save(tmp_path / "c", (1, None))
    for name in ("2.orbax-checkpoint-tmp", "\u00b2", "07"):
        (tmp_path / "c" / name).mkdir()
    assert checkpoint.steps_on_disk(tmp_path / "c") == [1]
    checkpoint.remove_leftovers(tmp_path / "c")
    assert [f.name for f in (tmp_path / "c").iterdir()] == ["1"]
