"""README's table of plans: every experiment that names a topology, compiled for it (extra [plan]; some minutes).

    python benchmarks/plans.py [experiments/gpt3_*.py ...] [--json plans.jsonl]

Prints the table in Markdown. With --json each plan's figures are kept as a line, and read from there the next time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = (
    "| file | parameters | devices | mesh | remat | GiB a device | a step at best | tokens/s at best | days |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def planned(file: Path) -> dict:
    """The figures of one experiment, in a process of its own: a compiler that ends badly ends nothing else."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "plan.json")
        command = [sys.executable, "run.py", "plan", "--config", str(file), "--json", str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        # 1: it does not fit
        if done.returncode not in (0, 1) or not out.is_file():
            sys.exit(f"{file}: {done.stderr.strip() or done.stdout}")
        return json.loads(out.read_text())


def row(file: Path, figures: dict) -> str:
    """One line of the table."""
    seconds = {name: figures[f"{name}_seconds"] for name in ("compute", "memory", "wire")}
    mesh = " x ".join(f"{axis} {n}" for axis, n in figures["mesh"].items() if n > 1)
    needed = figures["needed_bytes"] or float("nan")
    cells = [
        f"`{file.name}`",
        f"{figures['parameters'] / 1e9:.3g}B",
        figures["topology"],
        mesh,
        figures["remat"],
        f"{needed / 2**30:.1f} of {figures['device_bytes'] / 2**30:.1f}" + ("" if figures["fits"] else ", no fit"),
        f"{figures['step_seconds']:.3g} s, {max(seconds, key=seconds.get)}",
        f"{figures['tokens_per_second']:,.0f}",
        f"{figures['tokens'] / figures['tokens_per_second'] / 86_400:.3g}",
    ]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description="the table of plans")
    parser.add_argument("files", nargs="*", type=Path, help="experiments (default: all that name a topology)")
    parser.add_argument("--json", type=Path, help="where figures are kept from run to run")
    options = parser.parse_args()
    files = options.files or [
        file for file in (ROOT / "experiments").glob("*.py") if "topology=" in file.read_text(encoding="utf-8")
    ]
    known = {}
    if options.json and options.json.is_file():
        known = {line["file"]: line for line in map(json.loads, options.json.read_text().splitlines())}
    rows = []
    for file in files:
        if file.name not in known:
            known[file.name] = planned(file) | {"file": file.name}
            if options.json:
                with options.json.open("a") as kept:
                    kept.write(json.dumps(known[file.name]) + "\n")
        rows.append((known[file.name]["parameters"], file.name, row(file, known[file.name])))
    print(HEAD)
    for _, _, line in sorted(rows):
        print(line)


if __name__ == "__main__":
    main()
