"""The steps that bench_step.py measured, as a Markdown page and, on request, a PNG chart.

python -m benchmarks.step.page FILE.json [--chart FILE.png] > FILE.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.step.cases import COMPILED

KERNELS = 12  # of a profile; the rest stands in the JSON
LONGEST_NAME = 90
HEADS = ("implementation", "time, ms", "against ours", "images/s", "peak memory, MiB", "rounds")


def title(spec: str) -> str:
    model, size, dtype, mode, *kind = spec.split(":")
    precision = "bfloat16 autocast" if dtype == "bfloat16" else dtype
    what = "training step" if mode == "train" else "inference"
    extra = COMPILED.get(kind[0], kind[0]) if kind else ""
    return f"{model}, {what}, {size}, {precision}{f', {extra}' if extra else ''}"


def markdown(result: dict[str, Any]) -> str:
    """A table a case, and what is missing in it."""
    lines = [
        f"{report.source(as_report(result))}.",
        "A training step is forward, L1 loss, backward and AdamW (fused), inference a forward under no_grad. Time: "
        "median. Against ours: median (and quartiles) of the ratios within a round, all implementations taking turns. "
        "Peak memory: of one step, beyond weights, optimizer state and images; gradients count.",
    ]
    if result["dry"]:
        lines += ["", "A dry run: one round. No figure here means anything."]
    for case in result["cases"]:
        lines += ["", f"**{title(case['case'])}**", ""]
        if "error" in case:
            lines.append(_cell(case["error"]))
            continue
        lines += _table(case["rows"]) if case.get("rows") else []
        for name, profile in case.get("profile", {}).items():
            lines += _profile(name, profile)
        missing = case["absent"] | {name: f"FAILED: {why}" for name, why in case["failed"].items()}
        lines += (
            ["", *(f"- not here: {name}: {_cell(why)}" for name, why in missing.items())] if missing else []
        )
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for row in sorted(rows, key=lambda row: row["ratio"]):
        cells = (
            row["name"],
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['ratio']:.2f}x ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})",
            f"{row['images_per_s']:.3g}",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
            str(row["rounds"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _profile(name: str, profile: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"{name}: {profile['us'] / 1e3:.1f} ms in {profile['calls']} calls of kernels",
        "",
        "| kernel | calls | ms | share |",
        "|---|--:|--:|--:|",
    ]
    for row in profile["top"][:KERNELS]:
        share = row["us"] / profile["us"]
        kernel = _cell(row["name"][:LONGEST_NAME])
        lines.append(f"| `{kernel}` | {row['calls']} | {row['us'] / 1e3:.2f} | {share:.0%} |")
    return lines


def as_report(result: dict[str, Any]) -> dict[str, Any]:
    """The same as report.py has it: what it draws of an op's file it can draw of this one."""
    return {
        "machine_info": {"cpu": {"brand_raw": result["machine"]["device"]}},
        "cpl": result,
        "datetime": result["date"],
        "benchmarks": [
            {
                "group": title(case["case"]),
                "name": row["name"],
                "stats": {"median": row["seconds"]},
                "extra_info": row,
            }
            for case in result["cases"]
            for row in case.get("rows", ())
        ],
    }


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, metavar="FILE.json")
    parser.add_argument("--chart", type=Path, metavar="FILE.png")
    args = parser.parse_args(argv)
    result = json.loads(args.result.read_text())
    if args.chart is not None:
        report.chart(as_report(result), args.chart)
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
