"""Turns a pytest-benchmark JSON file into a Markdown table: python -m benchmarks.report FILE.json > FILE.md."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any


def markdown(result: dict[str, Any]) -> str:
    """One table per group, the first row (ours) as the unit of the ratio column."""
    machine, cpl = result["machine_info"], result["cpl"]
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("processor", "unknown CPU"))
    lines = [
        f"{cpu}, {cpl['threads']} threads, torch {cpl['versions']['torch']}, "
        f"cpl_kernels {cpl['versions']['cpl_kernels']} at {cpl['commit'][:12]}, {result['datetime'][:10]}.",
        "Medians; ratios are of medians taken in one run.",
    ]
    rows = sorted(result["benchmarks"], key=lambda b: b["group"])
    for group, members in groupby(rows, key=lambda b: b["group"]):
        listed = list(members)
        ours = next(b for b in listed if b["name"].startswith("ours"))["stats"]["median"]
        lines += [
            "",
            f"**{group}**",
            "",
            "| implementation | median, ms | against ours | GB/s of the floor's bytes | share of copy bandwidth |",
            "|---|---|---|---|---|",
        ]
        for row in sorted(listed, key=lambda b: b["stats"]["median"]):
            median, extra = row["stats"]["median"], row["extra_info"]
            lines.append(
                f"| {row['name']} | {median * 1e3:.2f} | {median / ours:.2f}x | {extra['gb_per_s']:.1f} "
                f"| {extra['share_of_copy_bandwidth']:.0%} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.report RESULT.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())), end="")
