"""Published networks with cpl.patch: python -m benchmarks.networks --root FOLDER [--out FILE.json]

FOLDER holds the clones (python -m benchmarks.networks.clones --root FOLDER). Each network has a process of its own and
is written as it ends; one that fails, or takes too long, is named with its reason. ``--resume`` measures only what
FILE.json does not have. ``--rounds 0`` leaves the times out, and runs on a busy machine too. The page is made by

python -m benchmarks.networks.page FILE.json > FILE.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import idle
from benchmarks.facts import facts
from benchmarks.networks import measure
from benchmarks.networks.catalogue import NETWORKS

OUT = Path("benchmarks/results/cpu_networks.json")
SIDE, TIMED_SIDE = 64, 128
SECONDS = 15.0  # of turns, a network
LONGEST = 600.0  # of a process
ASKED = ("side", "timed_side", "seconds", "rounds", "threads")


def processor() -> str:
    """What /proc/cpuinfo calls it, where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The network's row, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.networks.measure", name, "--root", str(args.root)]
    for option in ASKED:
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"it was not done after {LONGEST:g} seconds"}
    if done.returncode != 0:
        return {"name": name, "failed": f"its process ended with {done.returncode}"}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run that did not fail."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {row["name"]: row for row in rows if "failed" not in row}


def main(argv: list[str] | None = None) -> None:
    names = [network.name for network in NETWORKS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="the folder of the clones")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--resume", action="store_true", help="keep what --out has")
    parser.add_argument("--side", type=int, default=SIDE, help="of the image that is compared")
    parser.add_argument("--timed-side", type=int, default=TIMED_SIDE, help="of the image that is timed")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of turns, for each network")
    parser.add_argument("--rounds", type=int, default=measure.MOST_ROUNDS, help="at most; 0: no times")
    parser.add_argument("--threads", type=int, default=measure.THREADS)
    args = parser.parse_args(argv)
    if args.rounds:
        idle.require()
    rows = kept(args.out) if args.resume else {}
    for name in args.only or names:
        if name in rows:
            continue
        rows[name] = run(name, args)
        print(summary(rows[name]), file=sys.stderr, flush=True)
        told: dict[str, Any] = {
            "processor": processor(),
            **{option: getattr(args, option) for option in ASKED},
        }
        if not args.rounds:
            told["machine_was"] = "no times taken"
        listed = sorted(rows.values(), key=lambda row: names.index(row["name"]))
        args.out.write_text(json.dumps({**facts(), **told, "rows": listed}, indent=1) + "\n")


def summary(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']}: FAILED: {row['failed']}"
    ours, own = (row["errors"][whose] for whose in ("patched", "published"))
    times = f", {row['time']['ratio']:.2f}x" if "time" in row else ""
    return (
        f"{row['name']}: output {ours['output']:.1e} (its own {own['output']:.1e}), gradients "
        f"{ours['gradients']:.1e} (its own {own['gradients']:.1e}){times}; {row['taken'] or 'nothing'} taken"
    )


if __name__ == "__main__":
    main()
