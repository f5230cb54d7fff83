"""Several processes that train one model: joining, agreeing, waiting for process 0, ending together.

The engine is jax.distributed: it finds dead processes by their heartbeats, and agrees on the step after which all stop
when one gets SIGTERM. What is agreed on here goes through its key-value store and never through a device. With one
process every function returns at once.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax

from lmjax.errors import UserError, one_line, path_text
from lmjax.places import Place

# seconds: for what process 0 makes ready alone, such as token stores; for a word of one that has nothing to do; for a
# new file to show on a network's file system
READY_LIMIT = 6 * 3600
ANSWER_LIMIT = 300
SHARED_LIMIT = 30

_calls: Counter = Counter()
_leaving = threading.Lock()


@dataclass(frozen=True)
class Meeting:
    """Where and how processes meet. coordinator ("HOST:PORT" of process 0), processes and process: None where the
    cluster says. join_timeout: seconds until all have come; peer_timeout: until a silent one counts as dead."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    join_timeout: int = 300
    peer_timeout: int = 60

    @property
    def asked(self) -> bool:
        """Whether there are several processes, or may be, as far as can be told without asking a network."""
        return self.coordinator is not None or cluster() is not None or on_tpu_vm()

    def check(self) -> None:
        """Raises UserError where the numbers do not belong together."""
        given = [self.coordinator is not None, self.processes is not None, self.process is not None]
        if any(given) and not all(given):
            raise UserError("--coordinator HOST:PORT, --processes N and --process I belong together")
        if not 1 <= min(self.join_timeout, self.peer_timeout) <= max(self.join_timeout, self.peer_timeout) <= 10**6:
            raise UserError("--join-timeout and --peer-timeout: expected a number of seconds from 1 to a million")
        if not any(given):
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise UserError(f"--coordinator {self.coordinator}: expected HOST:PORT, as 10.0.0.1:1234")
        if not 1 <= self.processes <= 10**6 or not 0 <= self.process < self.processes:
            raise UserError(
                f"--process {self.process} of --processes {self.processes}: expected a number from 0 to one below that"
            )


def cluster() -> str | None:
    """By whose word there are several processes, which jax.distributed then finds by itself; None: by nobody's."""
    variables = os.environ
    if _number("SLURM_NTASKS") > 1 and "SLURM_PROCID" in variables and "SLURM_LOCALID" in variables:
        return "Slurm"
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if len(variables.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in variables:
        return "the TPU pod"
    return None


def on_tpu_vm() -> bool:
    """Whether this looks like a TPU's host, which is asked whether there are others."""
    devices = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return devices and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu" and "TPU_SKIP_MDS_QUERY" not in os.environ


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 1


def join(meeting: Meeting) -> None:
    """Become one of several processes, where that is asked for. Raises UserError where the cluster says nothing; ends
    the process where the others do not come."""
    if not meeting.asked:
        return
    _say_native_errors_in_one_line(meeting.peer_timeout)
    place = meeting.coordinator or "the place that the cluster names"
    # JAX would end the process by a stack trace
    reason = f"not all processes came to {place} within {meeting.join_timeout} s (--join-timeout)"
    if "SLURM_NTASKS" in os.environ and meeting.coordinator is None:
        reason += "; Slurm starts them by srun"
    late = threading.Timer(meeting.join_timeout, lambda: _end(2, reason))
    late.daemon = True
    late.start()
    # its handler of SIGTERM would let nothing stop this process before the first step: see `preemption_begins`
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            meeting.coordinator, meeting.processes, meeting.process,
            initialization_timeout=meeting.join_timeout + 60, heartbeat_timeout_seconds=meeting.peer_timeout,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        if meeting.coordinator is None and "coordinator_address should be defined" in str(error):
            if cluster() is None:
                return  # it looked like a TPU's host, and is none
            raise UserError(
                f"{cluster()} says that there are several processes, and JAX cannot find them by it; expected "
                "--coordinator HOST:PORT, --processes N and --process I"
            ) from None
        raise UserError(
            f"joining the other processes at {place} failed: {' '.join(str(error).split())[:300]}"
        ) from None
    finally:
        late.cancel()
    if count() > 1:
        threading.Thread(target=_end_with_others, daemon=True).start()
        code, reason = 128 + signal.SIGTERM, "stopped by SIGTERM before the first step; the same command goes on"
        signal.signal(signal.SIGTERM, lambda *_: leave(code, reason))


def preemption_begins() -> None:
    """From now on JAX has SIGTERM, and agrees with the others on the step after which all stop."""
    jax.config.update("jax_enable_preemption_service", True)
    jax._src.distributed.global_state.initialize_preemption_sync_manager()


def _say_native_errors_in_one_line(peer_timeout: int) -> None:
    """Let what native code writes to stderr pass a process that makes one line of JAX's report of a dead peer."""
    script = Path(__file__).with_name("native_errors.py")
    command = [sys.executable, "-I", str(script), str(peer_timeout)]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE)
    sys.stderr.flush()
    os.dup2(reader.stdin.fileno(), 2)


def count() -> int:
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Whether this process writes and speaks for all."""
    return count() == 1 or jax.process_index() == 0


def gather(name: str, value: Any, limit: float = ANSWER_LIMIT) -> list:
    """The JSON values of all processes, in their order. To be called by all, as often and in the same order for each
    name. Raises UserError where one says nothing within `limit` seconds."""
    if count() == 1:
        return [value]
    key, before = _next(name), f"{name}/{_calls[name] - 1}/{jax.process_index()}"
    _tell(f"{key}/{jax.process_index()}", json.dumps(value))
    told = [json.loads(_asked(f"{key}/{i}", limit)) for i in range(count())]
    if _calls[name] > 1:
        # all have come to this call, so nobody wants the last one's any more
        _client().key_value_delete(f"lmjax/{before}")
    return told


def wait_until(seen: Callable[[], bool], what: str, limit: float = SHARED_LIMIT) -> None:
    """Until something that another process wrote shows here; network file systems take a while. Raises UserError after
    `limit` seconds."""
    if not _shows(seen, limit):
        raise UserError(f"{what} did not show within {limit:.0f} s")


def _shows(seen: Callable[[], bool], limit: float) -> bool:
    """Whether it does within so many seconds."""
    until = time.monotonic() + limit
    while not seen():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def by_first(name: str, make: Callable[[], Any], limit: float = ANSWER_LIMIT) -> Any:
    """What make() gives on process 0, a JSON value, on all. Called as `gather`."""
    if count() == 1:
        return make()
    key = _next(name)
    if first():
        value = make()
        _tell(key, json.dumps(value))
        return value
    return json.loads(_asked(key, limit))


def share(items: list) -> list:
    """This process's part of some work on equal lists, so that all together do it once."""
    return items if count() == 1 else items[jax.process_index() :: count()]


def check_equal(name: str, values: dict[str, str]) -> None:
    """Raises UserError on all processes where one has other values than process 0, with the first difference."""
    told = gather(name, values)
    for process, theirs in enumerate(told):
        for key in [*told[0], *theirs]:
            if told[0].get(key) != theirs.get(key):
                raise UserError(
                    f"{key} is {told[0].get(key)} on process 0 and {theirs.get(key)} on process {process}; expected "
                    "the same on all"
                )


def check_shared(directory: Place) -> None:
    """Raises UserError on all processes where one does not see the directory that process 0 has made."""
    if count() == 1:
        return
    mark = directory / ".shared"

    def write() -> str:
        nonce = os.urandom(8).hex()
        directory.mkdir(parents=True, exist_ok=True)
        mark.write_text(nonce)
        return nonce

    nonce = by_first("shared/mark", write)
    seen = _shows(lambda: mark.is_file() and mark.read_text() == nonce, SHARED_LIMIT)
    blind = [process for process, saw in enumerate(gather("shared/seen", seen)) if not saw]
    if first():
        mark.unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()  # a run begins later, when all is known to be right
    if blind:
        raise UserError(
            f"--run {path_text(directory)}: process {blind[0]} does not see what process 0 writes there; expected a "
            "directory that all hosts share"
        )


def leave(code: int, reason: str) -> None:
    """Write the error, tell the others, and end at once: no meeting, which a dead process would never come to. With one
    process, nothing."""
    if count() == 1:
        return
    if not _leaving.acquire(blocking=False):
        time.sleep(60)  # the other thread is ending the process
    _write_error(reason)
    try:
        _tell("failed", json.dumps([jax.process_index(), code, reason]))
        # the others hear it from process 0
        time.sleep(2 if first() else 0)
    except jax.errors.JaxRuntimeError:
        pass  # another was faster, or process 0 is gone
    os._exit(code)


@contextmanager
def together(meeting: Meeting) -> Iterator[None]:
    """Join, where there are several processes, and leave together; or end all of them, where one fails."""
    join(meeting)
    try:
        yield
    except (UserError, OSError) as error:
        leave(2, one_line(error))
        raise
    except KeyboardInterrupt:
        leave(130, "interrupted")
        raise
    except Exception as error:
        if count() > 1:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # where another process is dead, JAX finds out which, and ends this one meanwhile
                time.sleep(meeting.peer_timeout + 15)
            traceback.print_exc()
        leave(1, f"{type(error).__name__}, see above")
        raise
    if count() > 1 and _leaving.acquire(blocking=False):
        jax.distributed.shutdown()


def _end_with_others() -> None:
    """Wait until one of the others says that it failed."""
    while True:
        try:
            process, code, reason = json.loads(_asked("failed", 3600))
        except UserError:
            continue
        except jax.errors.JaxRuntimeError:
            return  # the meeting is over
        if process != jax.process_index() and _leaving.acquire(blocking=False):
            time.sleep(1 if first() else 0)
            _end(code, f"process {process} ended: {reason}")
        return


def _end(code: int, reason: str) -> NoReturn:
    _write_error(reason)
    os._exit(code)


def _write_error(reason: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"error: {reason}\n")
    sys.stderr.flush()


def _next(name: str) -> str:
    """A key of its own for each call."""
    _calls[name] += 1
    return f"{name}/{_calls[name]}"


def _client():
    # the one private place: JAX has no public way to its key-value store
    return jax._src.distributed.global_state.client


def _tell(key: str, value: str) -> None:
    _client().key_value_set(f"lmjax/{key}", value)


def _asked(key: str, limit: float) -> str:
    until = time.monotonic() + limit
    while True:
        try:
            # a second at a time: a signal's handler runs in between
            return _client().blocking_key_value_get(f"lmjax/{key}", 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if time.monotonic() > until:
            raise UserError(f"nothing was heard of {key!r} within {limit:.0f} s")
