"""Turns a pytest-benchmark JSON file into a Markdown table and, on request, a PNG chart.

python -m benchmarks.report FILE.json [--chart FILE.png] > FILE.md
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.harness import FAR_RATIO, FAR_ROUNDS, OURS

OWN, OTHER = "#1b7f5c", "#9aa5b1"  # colours of bars


def groups(result: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group name and its rows, the quickest first."""
    listed = sorted(result["benchmarks"], key=lambda b: b["group"])
    return [
        (name, sorted(rows, key=lambda b: b["extra_info"]["ratio"]))
        for name, rows in groupby(listed, key=lambda b: b["group"])
    ]


def source(result: dict[str, Any]) -> str:
    """Where and with what the figures were taken."""
    machine, cpl = result["machine_info"], result["cpl"]
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("processor", "unknown CPU"))
    return (
        f"{cpu}, {cpl['threads']} threads, {cpl['machine_was']}; torch {cpl['versions']['torch']}, "
        f"cpl_kernels {cpl['versions']['cpl_kernels']} at {cpl.get('checkout', cpl['commit'])[:12]}, "
        f"{result['datetime'][:10]}"
    )


def markdown(result: dict[str, Any]) -> str:
    """One table a group."""
    lines = [
        f"{source(result)}.",
        "Time: median. Against ours: median (and quartiles) of the ratios within a round, all implementations taking "
        f"turns; a peer that took over {FAR_RATIO:g} times as long as the fastest had {FAR_ROUNDS} rounds. Peak "
        "memory: of one call in a fresh process, beyond its inputs.",
    ]
    for name, rows in groups(result):
        with_flops = any("tflop_per_s" in row["extra_info"] for row in rows)
        heads = [
            "implementation",
            "time, ms",
            "against ours",
            "peak memory, MiB",
            "GB/s of the floor's bytes",
        ]
        heads += ["share of copy bandwidth", *(["TFLOP/s"] if with_flops else [])]
        lines += ["", f"**{name}**", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in rows:
            extra = row["extra_info"]
            cells = [
                row["name"],
                f"{row['stats']['median'] * 1e3:.2f}",
                f"{extra['ratio']:.2f}x ({extra['ratio_q1']:.2f} to {extra['ratio_q3']:.2f})",
                f"{extra['peak_bytes'] / 2**20:.1f}",
                f"{extra['gb_per_s']:.1f}",
                f"{extra['share_of_copy_bandwidth']:.0%}",
            ]
            if with_flops:
                cells.append(f"{extra['tflop_per_s']:.2f}" if "tflop_per_s" in extra else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """A panel a group, a bar an implementation: time as a multiple of ours, with its quartiles."""
    from matplotlib.figure import Figure

    panels = groups(result)
    heights = [0.5 + 0.3 * len(rows) for _, rows in panels]
    figure = Figure(figsize=(8, sum(heights) + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, rows) in zip(axes, panels, strict=True):
        extras = [row["extra_info"] for row in rows]
        ratio = [extra["ratio"] for extra in extras]
        spread = [
            [max(0.0, extra["ratio"] - extra["ratio_q1"]) for extra in extras],
            [max(0.0, extra["ratio_q3"] - extra["ratio"]) for extra in extras],
        ]
        colours = [OWN if row["name"].startswith(OURS) else OTHER for row in rows]
        bars = panel.barh([row["name"] for row in rows], ratio, xerr=spread, color=colours, ecolor="#333333")
        labels = [
            f"  {r:.2f}x, {row['stats']['median'] * 1e3:.2f} ms" for r, row in zip(ratio, rows, strict=True)
        ]
        panel.bar_label(bars, labels, fontsize=7)
        panel.axvline(1, color="#333333", lw=0.8, ls=":")
        panel.invert_yaxis()
        panel.margins(x=0.25)
        panel.set_title(name, fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"time, as a multiple of ours (shorter is faster)\n{source(result)}", fontsize=7)
    figure.savefig(path, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, metavar="FILE.json")
    parser.add_argument("--chart", type=Path, metavar="FILE.png")
    args = parser.parse_args(argv)
    result = json.loads(args.result.read_text())
    if args.chart is not None:
        chart(result, args.chart)
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
