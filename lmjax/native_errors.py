"""A program of its own: passes on what a process of several writes to stderr, but for native code's warnings, and makes
one line of JAX's report that another is dead, of some twenty lines and a stack trace. `hosts.join` starts it; it ends
with that process."""

import re
import signal
import sys
from collections.abc import Iterable, Iterator

FATAL = "JAX distributed service detected fatal errors"
AGAIN = "the newest checkpoint is good: start the same command again on all hosts"


def told(report: str, peer_timeout: str) -> str:
    """One line for the report that ends a process."""
    if "unhealthy" in report:
        who = ", ".join(re.findall(r"^(?:\S*task:)?(\d+)\s*$", report, re.MULTILINE)) or "another"
        return f"error: process {who} has been silent for {peer_timeout} s and counts as dead; {AGAIN}"
    if "Failed to send RPC" in report or "Socket closed" in report or "leader" in report:
        return f"error: process 0, at which the others meet, is gone; {AGAIN}"
    status = re.search(r"absl::Status: (.*)", report)
    return f"error: the meeting of the processes ended: {status[1] if status else report.strip()[:300]}; {AGAIN}"


def passed_on(lines: Iterable[str], report: list[str]) -> Iterator[str]:
    """The lines that a user should see; a fatal report is kept aside. A message of the meeting, which JAX's report
    repeats, goes with the lines that belong to it."""
    begin = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ (\w+)\.\w+:\d+\]")
    more = re.compile(r"\s*$|\d+\s*$|The tasks? |RPC: |Additional GRPC |:UNKNOWN:|\S*/?job:")
    dropped = False
    for line in lines:
        message = begin.match(line)
        if report or FATAL in line:
            report.append(line)
        elif message:
            dropped = message[1] != "F" and message[2].startswith(("coordination_service", "preemption"))
            if message[1] in "EF" and not dropped:
                yield line
        elif not (dropped and more.match(line)):
            dropped = False
            yield line


def main() -> None:
    # it ends when there is nothing more to read
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    report: list[str] = []
    for line in passed_on((raw.decode("utf-8", "replace") for raw in sys.stdin.buffer), report):
        sys.stderr.write(line)
        sys.stderr.flush()
    if report:
        sys.stderr.write(told("".join(report), sys.argv[1]) + "\n")


if __name__ == "__main__":
    main()
