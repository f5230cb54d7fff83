"""A run's directory: what lies where, one process at a time, and nothing that is not so.

Of a run at a URL the small files lie in a directory of this process. They are downloaded when the first one is read,
and uploaded (`upload`) when the run begins, before a checkpoint counts, after an evaluation, and when the process ends.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

import jax

from lmjax import checkpoint, configs, hosts, mirrors, tokenizers
from lmjax.checkpoint import write_whole
from lmjax.errors import UserError, path_text, say_where
from lmjax.experiment import Experiment
from lmjax.lease import Lease
from lmjax.places import Place, Remote, place
from lmjax.tokenizers import Tokenizer

# what a run that was killed while it began may have left
BEGUN = {".lock", ".shared", "tokenizer", "checkpoints", "held_out.jsonl", "data.json", "base.json"}
BEGUN |= {".held_out.jsonl.new", ".data.json.new", ".experiment.json.new", ".base.json.new"}


class RunDirectory:
    """Paths and small files. `lock` before writing anything; as a context manager, leaving unlocks. Of several
    processes process 0 has the lock, and writes."""

    def __init__(self, path: Place | str):
        path = place(path)
        if unfit := set("[]*?") & set(str(path.absolute())):
            # Orbax finds its own files by patterns, and would lose them
            raise UserError(f"{path_text(path.absolute())}: a run's path cannot hold {' '.join(sorted(unfit))}")
        # local: where this process has the small files
        self.path, self.local = path, mirrors.new(path)
        self.checkpoints = path / "checkpoints"
        self.metrics = self.local / "metrics.jsonl"
        self.samples = self.local / "samples.txt"
        self.held_out = self.local / "held_out.jsonl"
        self.tensorboard = self.local / "tensorboard"
        self._lock = None
        self._here = isinstance(path, Path)
        self._uploaded: dict[str, tuple] = {}
        self._uploading = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "experiment.json").is_file()

    def check_place(self) -> None:
        """Raise UserError early where a run could not begin here."""
        if self.path.is_file():  # one question: at a URL another process's mark makes a folder come and go
            raise UserError(f"--run {path_text(self.path)}: expected a directory")
        if self.path.is_dir() and not self.exists and any(e.name not in BEGUN for e in self.path.iterdir()):
            raise UserError(f"--run {path_text(self.path)}: not empty, and not a run directory")
        if isinstance(self.path, Remote):
            self._check_remote(self.path)
            return
        above = self.path.absolute()
        while not above.exists():
            above = above.parent
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"--run {path_text(self.path)}: {path_text(above)} cannot be written to")

    def _check_remote(self, path: Remote) -> None:
        if hosts.count() > 1 and not checkpoint.native(self.checkpoints):
            raise UserError(
                f"--run {path_text(path)}: several processes write one checkpoint together; expected a directory that "
                "all hosts share, or gs://"
            )
        if not hosts.first():
            return
        try:
            (path / ".shared").write_text("written to see whether it can be")
            (path / ".shared").unlink()
        except FileNotFoundError:
            raise UserError(f"--run {path_text(path)}: cannot be written to: no such bucket or host") from None
        except UserError as error:
            raise UserError(f"--run {path_text(path)}: cannot be written to: {error}") from None

    def lock(self) -> None:
        """Keep other processes out until this one ends, in whatever way. Raises UserError where one is in. A second
        call does nothing."""
        if self._lock is not None or not hosts.first():
            return
        if isinstance(self.path, Remote):
            lease = Lease(self.path / ".lock", self.path)
            lease.take(lambda text: print(text, flush=True))
            self._lock = lease
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")
        except OSError as error:
            raise UserError(f"--run {path_text(self.path)}: cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            self._lock = None
            raise UserError(f"{path_text(self.path)}: in use by {holder}; --run names another directory") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}")
        self._lock.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        say_where(error, self.path)
        if isinstance(self._lock, Lease):
            try:
                self.upload()
            except (UserError, OSError):
                if error is None:
                    raise
            finally:
                self._lock.release()
        elif self._lock is not None:
            self._lock.close()

    def upload(self) -> None:
        """Bring the small files that have changed to where the run is; the experiment last. Raises UserError where
        another process has taken the run."""
        if not isinstance(self._lock, Lease) or not self._here:
            return
        with self._uploading, tempfile.TemporaryDirectory(dir=self.local.parent) as still:
            self._lock.check()
            found = self._stamps()
            changed = [name for name, stamp in found.items() if self._uploaded.get(name) != stamp]
            for name in changed:  # some grow meanwhile
                (Path(still) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.local / name, Path(still) / name)
            self.path.upload(Path(still), sorted(changed, key=lambda name: name == "experiment.json"))
            self._uploaded = found

    def _stamps(self) -> dict[str, tuple]:
        files = [file for file in sorted(self.local.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        return {str(f.relative_to(self.local)): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}

    def _small(self, name: str) -> Path:
        """A small file or folder of the run, on this machine; who has the lock goes on with all of them."""
        if not self._here:
            wanted = ["experiment.json", "data.json", "base.json", "reference.json", "tokenizer"]
            wanted += ["held_out.jsonl", "metrics.jsonl", "samples.txt"] if self._lock is not None else []
            names = [name for name in self.path.sizes() if name.split("/")[0] in wanted]
            self.path.download(self.local, names)
            self._here, self._uploaded = True, self._stamps()
        return self.local / name

    def write_json(self, name: str, value) -> None:
        if hosts.first():
            write_whole(self.local / name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str):
        file = self.path / name
        try:
            return json.loads(self._small(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path_text(file)}: missing; expected a run directory of lmjax") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path_text(file)}: damaged: {error}") from None

    def experiment(self) -> Experiment:
        """The experiment as it was resolved when the run began."""
        tree = self.read_json("experiment.json")
        try:
            return configs.from_tree(Experiment, tree)
        except UserError as error:
            raise UserError(f"{path_text(self.path / 'experiment.json')}: {error}") from None

    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self._small("tokenizer"))

    def begin(self, experiment: Experiment, tokenizer: Tokenizer, data: dict, held_out: str) -> None:
        """Write what stays the same over the whole run; the experiment last, which makes it a run directory."""
        self._here = True
        tokenizer.save(self.local / "tokenizer")
        self.checkpoints.mkdir(exist_ok=True)
        self.write_experiment(experiment, data, held_out)

    def write_experiment(self, experiment: Experiment, data: dict, held_out: str) -> None:
        """Write the experiment, and the data that it has."""
        write_whole(self.held_out, held_out)
        self.write_json("data.json", data)
        self.write_json("experiment.json", configs.to_tree(experiment))
        self.upload()

    def compare(self, experiment: Experiment, data: dict, *, accept_changes: bool) -> list[str]:
        """The changes since the run began, which may only be more steps. Raises UserError for any other, unless
        they are accepted; the run directory then holds the new experiment."""
        stored = self.experiment()
        changes = configs.differences(configs.to_tree(stored), configs.to_tree(experiment))
        if stored.tokenizer != experiment.tokenizer:
            raise UserError(
                f"{path_text(self.path)}: {'; '.join(changes)}: the tokenizer of a run cannot change; "
                "--run DIR starts another run"
            )
        if (stored.adapter is None) != (experiment.adapter is None):
            raise UserError(
                f"{path_text(self.path)}: {'; '.join(changes)}: a run begins with its adapter or has none; "
                "--run DIR starts another run"
            )
        grown = len(changes) == 1 and stored.steps < experiment.steps
        if (before := self.read_json("data.json")) != data:
            changes += [
                f"data: {before['fingerprints']} -> {data['fingerprints']}, the text behind data.source changed"
            ]
            grown = False
        if changes and not grown and not accept_changes:
            raise UserError(
                f"{path_text(self.path)} holds a run of another experiment: {'; '.join(changes)} "
                "(--run DIR starts another run, --accept-changes goes on with this one)"
            )
        return changes

    def cut(self, step: int) -> None:
        """Drop the metrics and samples after a step: that part of the run is done again."""
        if not hosts.first():
            return
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_whole(self.metrics, "".join(kept))
        if self.samples.exists():
            pieces = re.split(r"^(?=--- step \d+$)", self.samples.read_text(encoding="utf-8"), flags=re.MULTILINE)
            kept = [piece for piece in pieces if piece and int(piece.split("\n", 1)[0].split()[2]) <= step]
            write_whole(self.samples, "".join(kept))

    def resumable(self, warn):
        """The newest good checkpoint's manifest, or None at the start of a run."""
        if hosts.first():
            checkpoint.remove_leftovers(self.checkpoints)
        return checkpoint.newest_good(self.checkpoints, warn)


def versions() -> dict[str, str | None]:
    """Of this package and those that decide what a run computes."""
    names = ("lmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """Of the code, as git describes it; None where it cannot be told."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def environment() -> dict:
    """Versions, devices and the commit of the code, as far as they can be told."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "commit": commit(),
    }
