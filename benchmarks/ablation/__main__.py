"""Prompts and what they bring: python -m benchmarks.ablation --photos FOLDER [--arms NAME ...] [--seeds 0 1 2]

Every arm of benchmarks/ablation/arms.py is trained on the same crops in the same order, and measured on photos that
were held out. An arm that ended is in the results file and is not run again; one that was interrupted goes on from
what WORK holds. The page and its charts:

python -m benchmarks.ablation.page FILE.json --chart FILE.png > FILE.md
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import measure
from benchmarks.ablation.arms import ARMS
from benchmarks.ablation.data import TASKS, Crops, prepare
from benchmarks.ablation.train import OF_EACH_TASK, train
from benchmarks.facts import facts
from benchmarks.networks.__main__ import processor
from cpl.files import atomic_write

OUT = Path("benchmarks/results/cpu_ablation.json")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="a folder of clean photos")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="crops and unfinished runs")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="NAME", help=", ".join(ARMS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=2500, help=f"of {OF_EACH_TASK} crops of each task (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    crops = prepare(args.photos, args.work, args.steps * OF_EACH_TASK * len(TASKS))
    for seed in args.seeds:
        for name in args.arms:
            if not any(_is(row, name, seed, args.steps) for row in _rows(args.out)):
                row = run(name, seed, args.steps, args.work, crops)
                print(summary(row), file=sys.stderr, flush=True)
                keep(args.out, row)


def run(name: str, seed: int, steps: int, work: Path, crops: tuple[Crops, Crops]) -> dict[str, Any]:
    network, seen = train(name, seed, crops[0], steps, work)
    found = measure.measure(network, ARMS[name], *crops)
    told = {"arm": name, "seed": seed, "asked_steps": steps, "processor": processor()}
    # Seconds are wall time, whatever else the machine does.
    return {**told, **facts(), "machine_was": "not looked at", **seen, **found}


def keep(path: Path, row: dict[str, Any]) -> None:
    """Under a lock, so that several runs may fill one file."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [other for other in _rows(path) if not _is(other, row["arm"], row["seed"], row["asked_steps"])]
        rows.append(row)
        known = {name: number for number, name in enumerate(ARMS)}  # a newer commit may have filled in others
        rows.sort(key=lambda row: (row["asked_steps"], known.get(row["arm"], len(known)), row["seed"]))
        with atomic_write(path) as file:
            file.write(json.dumps({"rows": rows}, indent=1).encode() + b"\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def _is(row: dict[str, Any], name: str, seed: int, steps: int) -> bool:
    return (row["arm"], row["seed"], row["asked_steps"]) == (name, seed, steps)


def summary(row: dict[str, Any]) -> str:
    scores = ", ".join(f"{name} {values['restored']:.2f}" for name, values in row["psnr"].items())
    known = [f"{level['information']:.2f}" for level in row.get("choices", {}).values()]
    wrong = row.get("wrong", {})
    told = (
        f"; information {' '.join(known)}, wrong prompts cost {sum(wrong.values()) / len(wrong):.2f} dB"
        if wrong
        else ""
    )
    probe = f"; probe {' '.join(f'{p:.2f}' for p in row['probe'].values())}" if "probe" in row else ""
    return f"{row['arm']}, seed {row['seed']}, {row['seconds']:.0f} s: {scores}{told}{probe}"


if __name__ == "__main__":
    main()
