"""Does a run with our kernels learn what one in plain PyTorch does: python -m benchmarks.loss_curves --out FILE.json

The demo's training (cplir-tiny, five degradations of bundled photographs, contrastive prompt regularization) for its
first 200 steps, from the same seed, several times:

    reference           every kernel in plain PyTorch
    ours                the kernels that are the default here
    ours, keep=input    and blocks that keep their input alone for the backward
    reference, float32 sums in another order
                        the reference on one thread instead of two: how far rounding alone takes two runs apart

Each step's loss, and the PSNR on the photographs held out, at the end. --chart FILE.png draws the curves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import cpl_kernels
from benchmarks.facts import facts
from benchmarks.gpu.stages import write
from cpl.training import Trainer, load_preset
from cpl.training.progress import METRICS_FILE, read_metrics

STEPS, THREADS = 200, 2
REFERENCE, OURS = "reference", "ours"
RUNS: dict[str, dict[str, Any]] = {
    REFERENCE: {"backend": "reference"},
    OURS: {},
    "ours, keep=input": {"keep": "input"},
    "reference, float32 sums in another order": {"backend": "reference", "threads": 1},
}


def trained(
    steps: int, preset: str, backend: str | None = None, keep: str = "all", threads: int = THREADS
) -> dict[str, Any]:
    """The loss at each step, and PSNR in dB at the end."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, cpl_kernels.use_backend(backend):
        given = (f"steps={steps}", "log_every=1", "validate_every=null", f"keep={keep}", "device=cpu")
        result = Trainer(load_preset(preset, [*given, f"output_dir={folder}/run"])).run()
        if result.signal:
            sys.exit(128 + result.signal)
        records = read_metrics(Path(folder) / "run" / METRICS_FILE)
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == steps
    return {"losses": losses, "psnr": result.best_psnr}


def compared(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds how far each run's curve and PSNR are from the reference's."""
    gold = runs[REFERENCE]
    for run in runs.values():
        apart = [abs(a - b) / abs(b) for a, b in zip(run["losses"], gold["losses"], strict=True)]
        run["loss_apart_first_ten"], run["loss_apart_most"] = max(apart[:10]), max(apart)
        run["psnr_apart"] = run["psnr"] - gold["psnr"]
    return runs


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, run), style in zip(runs.items(), ("-", "--", "-.", ":"), strict=False):
        steps = range(1, len(run["losses"]) + 1)
        axes.plot(steps, run["losses"], style, label=f"{name}: {run['psnr']:.2f} dB", linewidth=1.2)
    axes.set(
        xlabel="step", ylabel="loss", yscale="log", title="cplir-tiny, the demo's training, the same seed"
    )
    figure.legend(loc="outside lower center", ncols=2)  # beside the curves, not over them
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--chart", type=Path, metavar="FILE.png")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--preset", default="demo")
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    about = facts()
    runs: dict[str, dict[str, Any]] = {}
    for name, settings in RUNS.items():
        runs[name] = trained(args.steps, args.preset, **settings)
        print(f"{name}: {runs[name]['psnr']:.3f} dB", file=sys.stderr, flush=True)
    result = {**about, "preset": args.preset, "steps": args.steps, "runs": compared(runs)}
    write(args.out, json.dumps(result, indent=1) + "\n")
    for name, run in runs.items():
        print(
            f"{name}: {run['psnr_apart']:+.3f} dB, loss apart by at most {run['loss_apart_first_ten']:.1e} in the "
            f"first ten steps and {run['loss_apart_most']:.1e} in all"
        )
    if args.chart is not None:
        draw(runs, args.chart)


if __name__ == "__main__":
    main()
