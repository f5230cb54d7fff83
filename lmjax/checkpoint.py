"""Checkpoints: Orbax writes and reads the arrays, a manifest of our own says whether they are whole and unchanged.

A checkpoint is written to STEP.new, its manifest last, and then renamed to STEP: a killed process leaves no STEP that
is not whole. It is good when every file has the size and SHA-256 that the manifest names: Orbax alone loads flipped
bits and half-written directories without a word.

At a URL nothing can be renamed, and the manifest alone makes a checkpoint of what lies in STEP. Orbax writes to gs://
and reads from there itself; for other URLs it writes to and reads from a directory of this process (`mirrors`), whose
files are uploaded and downloaded.

Several processes write one checkpoint together, each its own part of the arrays and the checksums of its share of the
files; process 0 writes the manifest and renames. They call everything here alike.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from lmjax import hosts, mirrors, trees
from lmjax.errors import UserError, path_text
from lmjax.places import REQUESTS, Place, Remote, in_order, reason_of

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. files: name -> [size, sha256]. leaves: path -> [shape, dtype]. eval_loss: nats
    per held-out token at this step, None where it was not evaluated then."""

    format: int
    step: int
    eval_loss: float | None
    leaves: dict[str, list]
    files: dict[str, list]


class Damaged(Exception):
    """A checkpoint that cannot be trusted, and why."""


class Checkpoints:
    """The checkpoints of one run, and the thread that writes them. Use as a context manager: leaving waits."""

    def __init__(self, directory: Place, keep: int, before_commit: Callable[[], None] = lambda: None):
        """before_commit: what else must lie where the run does before a checkpoint counts; called by process 0."""
        self.directory, self.keep, self.before_commit = directory, keep, before_commit
        self._writer = ThreadPoolExecutor(1)
        self._last: Future | None = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._writer.shutdown(wait=True)
        if exception[0] is None:
            self.wait()

    def save(self, step: int, params, rest, eval_loss: float | None) -> None:
        """Write in the background; the arrays may be donated once this returns. Raises what went wrong with the
        save before, so no failure goes unnoticed."""
        self.wait()
        trees_to_save = {"params": params, "rest": dict(trees.named_leaves(rest))}
        with telling_of_full_disk(self.directory):
            if native(self.directory):
                # a damaged one; Orbax would ask another library of Google's to do it
                hosts.by_first("checkpoint/room", lambda: remove(self.directory, step), hosts.READY_LIMIT)
            scratch = orbax_path(_scratch(self.directory, step))
            response = ocp.save_checkpointables_async(scratch, trees_to_save, overwrite=not native(self.directory))
        leaves = {name: [list(x.shape), str(x.dtype)] for name, x in trees.named_leaves(trees_to_save)}
        self._last = self._writer.submit(self._finish, response, step, leaves, eval_loss)

    def wait(self) -> None:
        """Until the save under way is good, or raise why it is not."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def _finish(self, response, step: int, leaves: dict, eval_loss: float | None) -> None:
        scratch = _scratch(self.directory, step)
        with telling_of_full_disk(self.directory):
            response.result()
            sizes = hosts.by_first("checkpoint/files", lambda: _files(scratch), hosts.READY_LIMIT)
            names = hosts.share(sorted(sizes))
            digests = _each(lambda name: sha256(scratch / name), names, scratch)
            own = [[name, sizes[name], digest] for name, digest in zip(names, digests, strict=True)]
            told = hosts.gather("checkpoint/checksums", own, hosts.READY_LIMIT)
            if not hosts.first():
                return
            files = {name: [size, digest] for part in told for name, size, digest in part}
            manifest = Manifest(FORMAT, step, eval_loss, leaves, dict(sorted(files.items())))
            self.before_commit()
            write_whole(scratch / MANIFEST, json.dumps(manifest.__dict__, indent=1))
            _publish(scratch, self.directory, step)
        self._retain(step)

    def _retain(self, newest: int) -> None:
        """Delete all but the newest and the best, and only once the newest is good."""
        good = manifests(self.directory)
        best = best_step(good)
        for step in sorted(good)[: -self.keep]:
            if step not in (best, newest):
                remove(self.directory, step)


def manifests(directory: Place) -> dict[int, Manifest]:
    """The manifests of all finished checkpoints by step; contents are not verified yet. Raises UserError for a
    checkpoint of a newer format."""
    found = {}
    for step in steps_on_disk(directory):
        try:
            fields = json.loads((directory / str(step) / MANIFEST).read_text(encoding="utf-8"))
            if fields["format"] > FORMAT:
                raise UserError(
                    f"{path_text(directory / str(step))}: written in format {fields['format']} by a newer lmjax; "
                    f"this one reads up to {FORMAT}"
                )
            found[step] = _checked(Manifest(**fields), step)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _checked(found: Manifest, step: int) -> Manifest:
    """Raises ValueError where it is not of this step, as in a directory with another name than it was written under, or
    its fields are not what they are said to be."""
    pairs = [*found.leaves.items(), *found.files.items()]
    numbers = all(type(size) is int and type(digest) is str for size, digest in found.files.values())
    judged = found.eval_loss is None or type(found.eval_loss) in (int, float)
    if found.step != step or not (judged and numbers and all(len(pair) == 2 for _, pair in pairs)):
        raise ValueError
    return found


def steps_on_disk(directory: Place) -> list[int]:
    """Every step that has a directory, whether or not it is whole; at a URL, that has a manifest: without one it was
    never a checkpoint."""
    if isinstance(directory, Remote):
        found = [entry for entry in directory.iterdir() if _is_step(entry.name)]
        return sorted(int(entry.name) for entry in found if (entry / MANIFEST).is_file())
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if _is_step(entry.name) and entry.is_dir())


def _is_step(name: str) -> bool:
    """Whether a directory's name is a step's number as it is written here."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def best_step(found: dict[int, Manifest]) -> int | None:
    """The step of the lowest held-out loss, the earliest of equals; None where none was evaluated."""
    judged = [(m.eval_loss, step) for step, m in found.items() if m.eval_loss is not None]
    return min(judged)[1] if judged else None


def best_loss(directory: Place) -> float:
    """The lowest held-out loss of any checkpoint; infinite where none was evaluated."""
    return min((m.eval_loss for m in manifests(directory).values() if m.eval_loss is not None), default=math.inf)


def verify(directory: Place, step: int) -> Manifest:
    """The manifest of a step whose files are all as it says; of several processes each reads its share. Raises
    Damaged."""
    folder = directory / str(step)
    manifest = manifests(directory).get(step)
    if manifest is None:
        reasons = [f"{path_text(folder)}: it was not written to its end, or not as this step"]
    else:
        names = hosts.share(sorted(manifest.files))
        here = _at_hand(directory, step)
        if isinstance(here, Path) and isinstance(directory, Remote):
            _download(directory, manifest, here)
        found = _each(lambda name: _damage(here / name, *manifest.files[name]), names, here)
        reasons = [reason for reason in found if reason][:1]
    told = [reason for one in hosts.gather("checkpoint/verify", reasons, hosts.READY_LIMIT) for reason in one]
    if told:
        raise Damaged(told[0])
    return manifest


def _damage(file: Place, size: int, digest: str) -> str | None:
    """In what a file is not what the manifest says."""
    if not file.is_file():
        return f"{path_text(file)}: missing"
    if file.stat().st_size != size:
        return f"{path_text(file)}: {file.stat().st_size} bytes, expected {size}"
    if sha256(file) != digest:
        return f"{path_text(file)}: its checksum is not the one it was written with"
    return None


def newest_good(directory: Place, warn) -> Manifest | None:
    """The newest checkpoint that is whole, or None where there is none at all. Each one passed over is told to
    warn(text). Raises UserError where there are checkpoints and none is good: nothing starts again at step 0."""
    steps = hosts.by_first("checkpoint/steps", lambda: steps_on_disk(directory), hosts.READY_LIMIT)
    reasons = []
    for step in reversed(steps):
        try:
            manifest = verify(directory, step)
        except Damaged as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warn(f"going back to step {step}: damaged checkpoint {reason}")
        return manifest
    if reasons:
        raise UserError(
            f"no good checkpoint is left; the newest: {reasons[0]}; remove {path_text(directory)} to start again"
        )
    return None


def chosen(directory: Place, step: int | str | None, warn) -> Manifest:
    """The checkpoint that a user asks for: a step, "best", or None for the newest good one."""
    if step is None:
        manifest = newest_good(directory, warn)
        if manifest is None:
            raise UserError(f"{path_text(directory)}: there is no checkpoint yet")
        return manifest
    found = manifests(directory)
    number = best_step(found) if step == "best" else step
    if number not in found:
        raise UserError(f"--step {step}: {path_text(directory)} has the steps {', '.join(map(str, found)) or 'none'}")
    try:
        return verify(directory, number)
    except Damaged as error:
        raise UserError(str(error)) from None


def restore(directory: Place, manifest: Manifest, abstract_params, abstract_rest=None):
    """(params, rest) from a verified checkpoint, each leaf straight into the sharding of its abstract leaf, whatever
    mesh it was saved from; rest is None where none is asked for. Raises UserError where a leaf has another shape."""
    wanted = {"params": abstract_params}
    if abstract_rest is not None:
        wanted["rest"] = dict(trees.named_leaves(abstract_rest))
    stored = {name: leaf for name, leaf in manifest.leaves.items() if name.split("/")[0] in wanted}
    asked = {name: [list(x.shape), str(x.dtype)] for name, x in trees.named_leaves(wanted)}
    for name in sorted(stored.keys() | asked.keys()):
        if stored.get(name) != asked.get(name):
            raise UserError(
                f"{path_text(directory / str(manifest.step))}: {name} is {_leaf_text(stored.get(name))}, "
                f"the experiment wants {_leaf_text(asked.get(name))}"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = ocp.load_checkpointables(orbax_path(_at_hand(directory, manifest.step)), wanted)
    if abstract_rest is None:
        return loaded["params"], None
    leaves = [loaded["rest"][name] for name, _ in trees.named_leaves(abstract_rest)]
    return loaded["params"], jax.tree.unflatten(jax.tree.structure(abstract_rest), leaves)


def remove_leftovers(directory: Place) -> None:
    """Delete what a killed process left half-written. Only for who holds the run's lock."""
    if isinstance(directory, Remote):
        whole = set(map(str, steps_on_disk(directory)))
        for entry in directory.iterdir():
            if entry.name not in whole:
                entry.remove_tree(first=MANIFEST)
    elif directory.is_dir():
        for entry in directory.iterdir():
            if not _is_step(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def remove(directory: Place, step: int) -> None:
    """Delete a step. Should that be cut short, what is left is no checkpoint any more."""
    if isinstance(directory, Remote):
        (directory / str(step)).remove_tree(first=MANIFEST)
    else:
        gone = directory / f"{step}.old"
        (directory / str(step)).rename(gone)
        shutil.rmtree(gone)


def native(directory: Place) -> bool:
    """Whether Orbax itself writes to that URL."""
    return isinstance(directory, Remote) and directory.scheme == "gs"


def orbax_path(place: Place):
    return place.absolute() if isinstance(place, Path) else epath.Path(str(place))


def _scratch(directory: Place, step: int) -> Place:
    """Where Orbax writes a step."""
    return directory / str(step) if native(directory) else mirrors.of(directory) / f"{step}.new"


def _publish(scratch: Place, directory: Place, step: int) -> None:
    """Make a checkpoint of what has its manifest."""
    if isinstance(directory, Path):
        if (directory / str(step)).exists():
            # damaged, or the run would not have come to this step again
            shutil.rmtree(directory / str(step))
        scratch.rename(directory / str(step))
    elif isinstance(scratch, Path):
        # in its place there may be a damaged one
        remove(directory, step)
        (directory / str(step)).upload(scratch, [*_files(scratch), MANIFEST])
        shutil.rmtree(scratch)


def _at_hand(directory: Place, step: int) -> Place:
    """Where Orbax can read a step that was verified."""
    return (directory if native(directory) else mirrors.of(directory)) / str(step)


def _download(directory: Remote, manifest: Manifest, folder: Path) -> None:
    """Into this process's directory, instead of what was there."""
    for earlier in steps_on_disk(folder.parent):
        shutil.rmtree(folder.parent / str(earlier))
    there = (directory / str(manifest.step)).sizes()
    (directory / str(manifest.step)).download(folder, [name for name in manifest.files if name in there])


def _each(work: Callable, names: list[str], place: Place) -> list:
    """Of a URL many at one time."""
    workers = REQUESTS if isinstance(place, Remote) else 1
    return list(in_order(work, names, workers, workers)) if workers > 1 else list(map(work, names))


def write_whole(file: Place, text: str) -> None:
    """The file has either its old content or all of the new, also after a crash."""
    if isinstance(file, Remote):
        file.write_text(text)
        return
    scratch = file.with_name(f".{file.name}.new")
    with open(scratch, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)


class telling_of_full_disk:
    """Turns the many shapes in which a full or read-only disk shows inside Orbax into one UserError."""

    SIGNS = ("No space left", "RESOURCE_EXHAUSTED", "File too large", "Read-only file system", "Disk quota")

    def __init__(self, directory: Place):
        self.directory = directory

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        text = str(error)
        sign = next((sign for sign in self.SIGNS if sign in text), None)
        others = (UserError, jax.errors.JaxRuntimeError)  # of a dead process: see hosts.py
        if isinstance(self.directory, Remote) and isinstance(error, Exception) and not isinstance(error, others):
            raise UserError(
                f"{path_text(self.directory)}: the checkpoint could not be written: {type(error).__name__}: "
                f"{reason_of(error)}; earlier ones are intact"
            ) from None
        if sign or isinstance(error, OSError):
            why = "No space left" if sign == "RESOURCE_EXHAUSTED" else sign or error.strerror or text
            raise UserError(
                f"{path_text(self.directory)}: the checkpoint could not be written: {why}; earlier ones are intact"
            ) from None


def _leaf_text(leaf) -> str:
    return "missing" if leaf is None else f"{leaf[1]} {tuple(leaf[0])}"


def _files(directory: Place) -> dict[str, int]:
    if isinstance(directory, Remote):
        return {name: size for name, size in directory.sizes().items() if MANIFEST not in name}
    return {
        str(file.relative_to(directory)): file.stat().st_size
        for file in sorted(directory.rglob("*"))
        if file.is_file() and MANIFEST not in file.name
    }


def sha256(file: Place) -> str:
    if isinstance(file, Remote):
        return file.sha256()
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
