"""Keeping other processes out of a run at a URL, where no lock dies with its holder.

The holder writes `.lock` again every few seconds, with a count. Who finds one watches it: if it changes, the run is in
use; if it stays the same for longer than its holder may be silent, the holder is dead.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable

from lmjax.errors import UserError, path_text
from lmjax.places import Remote


class Lease:
    """`take` it, `check` that it is still ours before something is committed, `release` it."""

    # seconds: between two signs of life; until a silent holder counts as dead; for another one that took it at the same
    # moment to show
    BEAT, SILENCE, SETTLE = 10.0, 25.0, 1.0

    def __init__(self, file: Remote, run: Remote):
        self._file, self._run = file, run
        self._nonce, self._count = os.urandom(8).hex(), 0
        self._writing = threading.Lock()
        self._ended = threading.Event()

    def take(self, tell: Callable[[str], None]) -> None:
        """Raises UserError where another process holds it; tell(text) says why this takes a while."""
        if not self._file.create(self._next()):
            self._wait_for_death(tell)
            self._file.write_text(self._next())
        time.sleep(self.SETTLE)
        self.check()
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Raises UserError where another process took it, as of one that was asleep for long."""
        with self._writing:  # no half of our own writing
            found = _read(self._file)
        if not self._ours(found):
            raise self._in_use(found)

    def release(self) -> None:
        with self._writing:
            self._ended.set()
            try:
                if self._ours(_read(self._file)):
                    self._file.unlink(missing_ok=True)
            except (UserError, OSError):
                pass  # it will be found silent; what brought the run to its end is the error to be told

    def _wait_for_death(self, tell: Callable[[str], None]) -> None:
        found = _read(self._file)
        tell(f"{path_text(self._run)}: waiting {self.SILENCE:g} s to see whether {_holder(found)} still runs")
        until = time.monotonic() + self.SILENCE
        while time.monotonic() < until:
            time.sleep(min(1.0, self.SILENCE / 10))
            if (now := _read(self._file)) != found:
                if now is None:
                    return  # it came to its end
                raise self._in_use(now)

    def _beat(self) -> None:
        while not self._ended.wait(self.BEAT):
            with self._writing:
                if self._ended.is_set():
                    return
                try:
                    if not self._ours(_read(self._file)):
                        return  # `check` says so before anything is committed
                    self._file.write_text(self._next())
                except (UserError, OSError):
                    continue  # the network may come back; if not, the next checkpoint says so

    def _next(self) -> str:
        self._count += 1
        holder = f"process {os.getpid()} on {platform.node()}"
        return json.dumps({"holder": holder, "nonce": self._nonce, "count": self._count}) + "\n"

    def _ours(self, found: dict | None) -> bool:
        return found is not None and found.get("nonce") == self._nonce

    def _in_use(self, found: dict | None) -> UserError:
        return UserError(f"{path_text(self._run)}: in use by {_holder(found)}; --run names another directory")


def _read(file: Remote) -> dict | None:
    """What the lock says; None where there is none."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:  # one that is just being written, where that is not done at once
        return {}
    return found if isinstance(found, dict) else {}


def _holder(found: dict | None) -> str:
    return str((found or {}).get("holder", "another process"))
