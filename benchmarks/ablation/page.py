"""The ablation's results as a page: python -m benchmarks.ablation.page FILE.json [--chart FILE.png] > FILE.md"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.arms import ARMS
from benchmarks.ablation.data import CLEAN, TASKS, TRAIN_SIDE, UNSEEN
from benchmarks.ablation.train import OF_EACH_TASK

Row = dict[str, Any]
BASELINE = "one"  # what each arm is compared with, seed by seed: the same network with nothing to choose


def page(rows: Sequence[Row]) -> str:
    lengths = sorted({row["asked_steps"] for row in rows})
    return "\n".join(
        line for steps in lengths for line in _of_steps([r for r in rows if r["asked_steps"] == steps], steps)
    )


def _of_steps(rows: Sequence[Row], steps: int) -> list[str]:
    by_arm = {name: [row for row in rows if row["arm"] == name] for name in ARMS}
    five = [name for name in ARMS if by_arm[name] and not ARMS[name].only]
    alone = {arm.only: by_arm[name] for name, arm in ARMS.items() if arm.only and by_arm[name]}
    count = OF_EACH_TASK * len(TASKS)
    return [
        f"## {steps} steps of {count} crops of {TRAIN_SIDE}x{TRAIN_SIDE}",
        "",
        f"{_each(rows, 'processor')}, {_each(rows, 'threads')} threads a run, commit {_each(rows, 'checkout')}. PSNR "
        "in dB on held-out photos, the mean over the seeds and, with several, their standard deviation: a seed is one "
        "set of initial weights and one order of the crops, the same for every arm.",
        "",
        *_table(
            ["arm", "parameters", "seeds", *TASKS, "mean", CLEAN, *UNSEEN, "minutes"],
            (_scores(name, by_arm[name]) for name in five),
        ),
        "",
        *(_alone(by_arm, five, alone) if alone else []),
        *(_against_baseline(by_arm, five) if by_arm[BASELINE] else []),
        *_what_is_chosen(by_arm, [name for name in five if any("choices" in row for row in by_arm[name])]),
    ]


def _alone(
    by_arm: dict[str, list[Row]], five: Sequence[str], alone: dict[str | None, list[Row]]
) -> list[str]:
    own = ["alone", *(_cell([_psnr(row, task) for row in alone.get(task, [])]) for task in TASKS)]
    gaps = [
        [f"{name}: gap", *(_gap(by_arm[name], alone.get(task, []), task) for task in TASKS)] for name in five
    ]
    return [
        "Each task alone, in as many steps and on as many crops of it, and by how much five tasks in one network are "
        "below that:",
        "",
        *_table(["arm", *TASKS], [own, *gaps]),
        "",
    ]


def _against_baseline(by_arm: dict[str, list[Row]], five: Sequence[str]) -> list[str]:
    others = [_paired(name, by_arm[name], by_arm[BASELINE]) for name in five if name != BASELINE]
    return [
        f"Against `{BASELINE}`, the difference seed by seed: its mean and, with several, the standard error of that.",
        "",
        *_table(["arm", *TASKS, "mean"], others),
        "",
    ]


def _what_is_chosen(by_arm: dict[str, list[Row]], routed: Sequence[str]) -> list[str]:
    if not routed:
        return []
    return [
        "What routers choose: what a level's choice tells of the task (0 nothing, 1 all); what wrong prompts at all "
        "levels cost, with the right ones' weights, on the mean of the tasks; and of how many images logistic "
        "regression tells the task from what the routers look at.",
        "",
        *_table(
            ["arm", "level 3", "level 2", "level 1", "wrong prompts, dB", "probe 3", "probe 2", "probe 1"],
            (_routing(name, by_arm[name]) for name in routed),
        ),
        "",
    ]


def _each(rows: Sequence[Row], key: str) -> str:
    """All values that rows have, where they differ."""
    return ", ".join(sorted({str(row[key])[:12] if key == "checkout" else str(row[key]) for row in rows}))


def _scores(name: str, rows: Sequence[Row]) -> list[str]:
    minutes = sum(row["seconds"] for row in rows) / len(rows) / 60
    names = [*TASKS, None, CLEAN, *UNSEEN]
    return [
        f"{name}: {ARMS[name].about}", f"{rows[0]['parameters'] / 1e6:.2f} M", str(len(rows)),
        *(_cell([_mean(row) if task is None else _psnr(row, task) for row in rows]) for task in names),
        f"{minutes:.1f}",
    ]  # fmt: skip


def _routing(name: str, rows: Sequence[Row]) -> list[str]:
    levels = ("level3", "level2", "level1")
    free = not ARMS[
        name
    ].oracle  # an oracle knows by definition, and its probe would see what no router had a hand in
    return [
        name,
        *(
            _cell([row["choices"][level]["information"] for row in rows]) if free else "given"
            for level in levels
        ),
        _cell([sum(row["wrong"].values()) / len(row["wrong"]) for row in rows]),
        *(_cell([row["probe"][level] for row in rows]) if free else "" for level in levels),
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
    routed = [
        row
        for row in rows
        if "choices" in row and row["asked_steps"] == longest and not ARMS[row["arm"]].oracle
    ]
    arms = {row["arm"]: row for row in reversed(routed)}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for axis, level in zip(axes, (3, 2, 1), strict=True):
        for name in (name for name in ARMS if name in arms):
            looks = arms[name]["looks"]
            known = [look.get(f"routing/information{level}", math.nan) for look in looks]
            axis.plot([look["step"] for look in looks], known, label=name)
        axis.set(title=f"level {level}", xlabel="step", ylim=(-0.02, 1.02))
    axes[0].set_ylabel("what the choice tells of the task")
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
