"""Trains a small restorer on bundled photographs and shows what it does to photographs it never saw.

    python examples/demo.py --output demo

In a few minutes on two CPU cores: cplir-tiny is trained with Contrastive Prompt Regularization on five
degradations (noise, blur, rain, haze, low light) of six photographs, restores two held-out ones, and
leaves in the output folder a table (results.json), a picture sheet, the training curves, and
model.safetensors, which `cpl restore` uses at once. No network access; the seed and the number of
steps are fixed, so a machine gives the same figures every time.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MODEL, RESULTS, SHEET, CURVES, CARD = (
    "model.safetensors",
    "results.json",
    "before_restored_truth.png",
    "curves.png",
    "README.md",
)
EVALUATION_SEED = 2025  # of the held-out photographs' degradations; training never draws from it
THREADS = 2  # what the figures in the README were made with; another count changes the last bits


def main(argv: list[str] | None = None) -> int:
    """Train, restore, measure, draw; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="folder for the results (default: demo)"
    )
    parser.add_argument("--threads", type=int, default=THREADS, help=f"CPU threads (default: {THREADS})")
    parser.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="change the preset, for example steps=100"
    )
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")

    from cpl.errors import CplError

    try:
        run(Path(args.output), args.threads, args.overrides)
    except (CplError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(output: Path, threads: int, overrides: list[str]) -> dict[str, Any]:
    """The whole demonstration; returns what it writes to results.json."""
    import torch
    from rich.console import Console

    import cpl
    from cpl.data import BundledSource, bundled_photos, evaluation_cases
    from cpl.inference.evaluate import evaluate
    from cpl.training import Trainer, load_preset

    started = time.monotonic()
    torch.set_num_threads(threads)
    run_dir = output / "run"
    config = load_preset("demo", [f"output_dir={str(run_dir)!r}", "device=cpu", *overrides])
    if (run_dir / "config.yaml").exists():
        shutil.rmtree(run_dir)  # an earlier demonstration; only its own folder

    console = Console(stderr=True, highlight=False)
    source = config.data.sources[0]
    assert isinstance(source, BundledSource)
    photos = bundled_photos("test", source.scale)
    console.print(
        f"training {config.model.name} for {config.steps} steps; then restoring "
        f"{', '.join(p.name for p in photos)}, which it has not seen",
        soft_wrap=True,
    )
    result = Trainer(config, console=console).run()
    if result.signal:
        raise KeyboardInterrupt
    trained = time.monotonic()

    # The last weights, not those that validated best: validation looks at the held-out photographs.
    os.replace(run_dir / "last.safetensors", output / MODEL)
    model, _ = cpl.load_checkpoint(output / MODEL)
    cases = evaluation_cases(photos, source.degradations, seed=EVALUATION_SEED)
    restored: dict[tuple[str, str], np.ndarray] = {}

    def restore(image: np.ndarray) -> np.ndarray:
        case = cases[len(restored)]  # evaluate() takes them in order
        restored[case["task"], case["name"]] = cpl.restore(model, image)
        return restored[case["task"], case["name"]]

    evaluation = evaluate(restore, cases)
    Console().print(evaluation.table())
    write_sheet(output / SHEET, cases, restored)
    write_curves(output / CURVES, run_dir / "metrics.jsonl")
    seconds = {"training": round(trained - started, 1), "total": round(time.monotonic() - started, 1)}
    evaluation.info = {
        "preset": "demo",
        "overrides": overrides,
        "steps": result.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "photos": {
            "trained": [p.name for p in bundled_photos("train")],
            "held_out": [p.name for p in photos],
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "threads": threads,
        "machine": platform.machine(),
        "torch": str(torch.__version__),
    }
    evaluation.save_json(output / RESULTS)
    write_card(output / CARD, evaluation, config)
    print(f"{seconds['total']:.0f} s in all, {seconds['training']:.0f} of them training")
    print(f"pictures: {output / SHEET}   curves: {output / CURVES}   model card: {output / CARD}")
    print("Restore your own photos with:")
    print(f"  {command()} restore PHOTO --checkpoint {output / MODEL} --output restored/")
    return evaluation.to_dict()


def command() -> str:
    """How to call cpl: by its path when it is not on the PATH (make demo uses a virtual environment)."""
    beside = Path(sys.executable).parent / "cpl"
    if shutil.which("cpl") or not beside.exists():
        return "cpl"
    return os.path.relpath(beside)


def write_sheet(path: Path, cases: list[Any], restored: dict[tuple[str, str], np.ndarray]) -> None:
    """One row per degradation: degraded, restored, truth, of the photographs in turn."""
    from matplotlib.figure import Figure

    from cpl.files import atomic_write
    from cpl.inference.metrics import psnr

    tasks = list(dict.fromkeys(case["task"] for case in cases))
    figure = Figure(figsize=(10.5, 2.45 * len(tasks)), dpi=110, layout="constrained")
    grid = figure.subplots(len(tasks), 3, squeeze=False)
    for row, task in enumerate(tasks):
        of_task = [case for case in cases if case["task"] == task]
        case = of_task[row % len(of_task)]
        target = case["target"]
        pictures = (
            ("degraded", case["degraded"]),
            ("restored", restored[task, case["name"]]),
            ("truth", target),
        )
        for axes, (what, image) in zip(grid[row], pictures, strict=True):
            axes.imshow(np.clip(image, 0, 1))
            axes.set_axis_off()
            figures = "" if what == "truth" else f", {psnr(image, target):.1f} dB"
            axes.set_title(f"{task}: {what}{figures}", fontsize=9)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def write_curves(path: Path, metrics: Path) -> None:
    """Loss and PSNR over the steps, training and held-out."""
    from matplotlib.figure import Figure

    from cpl.files import atomic_write
    from cpl.training.progress import read_metrics

    records = read_metrics(metrics)
    trained = [r for r in records if r["kind"] == "train"]
    validated = [r for r in records if r["kind"] == "validation"]
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in trained], [r["loss"] for r in trained])
    left.set(xlabel="step", ylabel="loss (L1 + CPR)", title="training loss")
    right.plot([r["step"] for r in trained], [r["psnr"] for r in trained], label="training crops", alpha=0.5)
    if validated:
        right.plot(
            [r["step"] for r in validated], [r["psnr"] for r in validated], "o-", label="held-out, restored"
        )
        right.axhline(validated[0]["degraded_psnr"], color="grey", ls="--", label="held-out, degraded")
    right.set(xlabel="step", ylabel="PSNR (dB)", title="PSNR, mean over degradations")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def write_card(path: Path, evaluation: Any, config: Any) -> None:
    """The model card: what it was trained on, what it reaches, where it ends."""
    from cpl.files import atomic_write

    info, rows = evaluation.info, []
    for task, s in [*evaluation.tasks.items(), ("**average**", evaluation.average)]:
        rows.append(
            f"| {task} | {s.degraded_psnr:.2f} / {s.degraded_ssim:.3f} | {s.restored_psnr:.2f} / "
            f"{s.restored_ssim:.3f} | {s.gain_psnr:+.2f} / {s.gain_ssim:+.3f} |"
        )
    source, loss = config.data.sources[0], config.loss
    specifications = "\n".join(f"- {task}: `{spec}`" for task, spec in source.degradations.items())
    size = "" if source.scale == 1 else f", all at {source.scale:g} of their size"
    text = f"""# cplir-tiny, demonstration model

A small all-in-one image restorer ({info["parameters"]:,} parameters), made by `make demo` to show that the
package works. It is no benchmark result.

    cpl restore PHOTO --checkpoint {MODEL} --output restored/

## Data
Trained on {len(info["photos"]["trained"])} photographs that scikit-image and scikit-learn carry
({", ".join(info["photos"]["trained"])}; origins and licences: docs/photos.md), degraded on the fly:

{specifications}

Held out, never trained on: {", ".join(info["photos"]["held_out"])}{size}.

## Training
- {info["steps"]} steps of {info["batch_size"]} crops of {config.data.crop} x {config.data.crop} pixels
- AdamW, learning rate {config.optimizer.lr:g} with cosine decay, EMA {config.ema}, seed {info["seed"]}
- loss: L1 and Contrastive Prompt Regularization ({loss.form}, features "{loss.features}", negatives per
  image: {loss.num_negatives}, weight {loss.weight:g})
- {info["seconds"]["training"]:.0f} s on {info["threads"]} threads ({info["machine"]}, torch {info["torch"]})
- the weights are the last ones, not chosen on the held-out photographs; the recipe (size, crops, strengths, steps,
  seed) was, so the figures are a little better than on photographs nobody has looked at

## Figures
PSNR in dB / SSIM on the whole held-out photographs, RGB, mean over images:

| degradation | degraded | restored | gain |
|---|---|---|---|
{chr(10).join(rows)}

## Limits
Six photographs and a few minutes make no general restorer: expect help with these synthetic degradations and
little with real ones; other strengths, mixtures, snow and JPEG were not trained. It may shift colours.
"""
    with atomic_write(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    sys.exit(main())
