"""The results of benchmarks.ablation as a page: python -m benchmarks.ablation.page FILE.json [--chart FILE.png] > FILE.md"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.arms import ARMS
from benchmarks.ablation.data import CLEAN, TASKS, UNSEEN

Row = dict[str, Any]
PAIRED = "sparse"  # what each arm is compared with, seed by seed


def page(rows: Sequence[Row]) -> str:
    steps = sorted({row["asked_steps"] for row in rows})
    return "\n".join(line for count in steps for line in _of_steps([r for r in rows if r["asked_steps"] == count], count))


def _of_steps(rows: Sequence[Row], steps: int) -> list[str]:
    arms = [name for name in ARMS if any(row["arm"] == name for row in rows)]
    five = [name for name in arms if not ARMS[name].only]
    by_arm = {name: [row for row in rows if row["arm"] == name] for name in arms}
    first = rows[0]
    lines = [
        f"## {steps} steps of 8 crops of 64 x 64",
        "",
        f"{first['processor']}, {first['threads']} threads a run, torch {first['versions']['torch']}, commit "
        f"{first['commit'][:7]}. PSNR in dB on held-out photos, the mean over the seeds and, with several, their standard "
        "deviation.",
        "",
        *_table(["arm", "seeds", *TASKS, "mean", CLEAN, *UNSEEN, "minutes"], (_scores(name, by_arm[name]) for name in five)),
        "",
    ]
    alone = {ARMS[name].only: by_arm[name] for name in arms if ARMS[name].only}
    if alone:
        lines += [
            "Each task alone, at as many pixels of it, and what the five together lose against that:",
            "",
            *_table(
                ["arm", *TASKS],
                [
                    ["alone", *(_cell([_psnr(row, task) for row in alone.get(task, [])]) for task in TASKS)],
                    *([f"{name}: gap", *(_gap(by_arm[name], alone.get(task, []), task) for task in TASKS)] for name in five),
                ],
            ),
            "",
        ]
    if PAIRED in five and len(by_arm[PAIRED]) > 1:
        lines += [
            f"Against `{PAIRED}`, the difference seed by seed: its mean, and the standard deviation of that mean.",
            "",
            *_table(["arm", *TASKS, "mean"], (_paired(name, by_arm[name], by_arm[PAIRED]) for name in five if name != PAIRED)),
            "",
        ]
    routed = [name for name in five if any("choices" in row for row in by_arm[name])]
    if routed:
        lines += [
            "What routers choose: the mutual information of a level's choice and the task, as a part of the tasks' entropy; what "
            "wrong prompts at all levels cost, on the mean of the tasks; and how many images' tasks logistic regression tells "
            "from the means that the routers look at.",
            "",
            *_table(
                ["arm", "level 3", "level 2", "level 1", "wrong prompts, dB", "probe 3", "probe 2", "probe 1"],
                (_routing(name, by_arm[name]) for name in routed),
            ),
            "",
        ]
    return lines


def _scores(name: str, rows: Sequence[Row]) -> list[str]:
    minutes = sum(row["seconds"] for row in rows) / len(rows) / 60
    names = [*TASKS, None, CLEAN, *UNSEEN]
    return [
        f"{name}: {ARMS[name].about}", str(len(rows)),
        *(_cell([_mean(row) if task is None else _psnr(row, task) for row in rows]) for task in names), f"{minutes:.1f}",
    ]  # fmt: skip


def _routing(name: str, rows: Sequence[Row]) -> list[str]:
    levels = ("level3", "level2", "level1")
    return [
        name,
        *(_cell([row["choices"][level]["of_entropy"] for row in rows]) for level in levels),
        _cell([sum(row["wrong"].values()) / len(row["wrong"]) for row in rows]),
        *(_cell([row["probe"][level] for row in rows]) for level in levels),
    ]


def _gap(rows: Sequence[Row], alone: Sequence[Row], task: str) -> str:
    single = {row["seed"]: _psnr(row, task) for row in alone}
    return _cell([single[row["seed"]] - _psnr(row, task) for row in rows if row["seed"] in single])


def _paired(name: str, rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
    base = {row["seed"]: row for row in others}
    pairs = [(row, base[row["seed"]]) for row in rows if row["seed"] in base]
    columns = [[_psnr(row, task) - _psnr(other, task) for row, other in pairs] for task in TASKS]
    columns.append([_mean(row) - _mean(other) for row, other in pairs])
    return [name, *(_cell(values, of_mean=True) for values in columns)]


def _psnr(row: Row, name: str) -> float:
    return float(row["psnr"][name]["restored"]) if name in row["psnr"] else math.nan


def _mean(row: Row) -> float:
    return sum(_psnr(row, task) for task in TASKS) / len(TASKS)


def _cell(values: Sequence[float], of_mean: bool = False) -> str:
    held = [value for value in values if not math.isnan(value)]
    if not held:
        return ""
    if len(held) == 1:
        return f"{held[0]:.2f}"
    deviation = float(np.std(held, ddof=1)) / (math.sqrt(len(held)) if of_mean else 1)
    return f"{np.mean(held):.2f} ± {deviation:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def chart(rows: Sequence[Row], path: Path) -> None:
    """The information at each level over training, arm by arm, of the longest runs' first seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    longest = max(row["asked_steps"] for row in rows)
    routed = [row for row in rows if "choices" in row and row["asked_steps"] == longest]
    arms = {row["arm"]: row for row in reversed(routed)}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for axis, level in zip(axes, (3, 2, 1), strict=True):
        for name in (name for name in ARMS if name in arms):
            looks = arms[name]["looks"]
            axis.plot([x["step"] for x in looks], [x.get(f"routing/information{level}", math.nan) for x in looks], label=name)
        axis.set(title=f"level {level}", xlabel="step", ylim=(-0.02, 1.02))
    axes[0].set_ylabel("information of choice and task / entropy of the task")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args(argv)
    rows = json.loads(args.file.read_text())["rows"]
    if args.chart:
        chart(rows, args.chart)
    print(page(rows))


if __name__ == "__main__":
    main()
