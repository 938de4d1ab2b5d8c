"""The networks that ``python -m benchmarks.networks`` measured, as a Markdown page.

python -m benchmarks.networks.page FILE.json > FILE.md
python -m benchmarks.networks.page FILE.json --into docs/drop_in.md   # the table alone, between its two comments
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEADS = (
    "network",
    "repository, commit",
    "parameters",
    "taken",
    "output",
    "gradients",
    "worst gradient",
    "saved, MiB",
    "step, published / patched",
)
BEGIN, END = "<!-- networks: made by benchmarks.networks.page -->", "<!-- end of networks -->"
ERRORS = ("output", "gradients", "worst_gradient")


def markdown(result: dict[str, Any]) -> str:
    """The table; below it what was left and why, network by network."""
    left = [line for row in ran(result) for line in _left(row)]
    return table(result) + "\n" + "\n".join(["**What was left**", "", *left]) + "\n"


def table(result: dict[str, Any]) -> str:
    """What was measured and how, a row a network, and what could not run."""
    lines = [
        f"{result['processor']}, threads: {result['threads']}, {result['machine_was']}; torch "
        f"{result['versions']['torch']}, cpl_kernels {result['versions']['cpl_kernels']} at "
        f"{result['checkout'][:12]}, {result['date'][:10]}.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|---" * len(HEADS) + "|",
        *(f"| {' | '.join(map(_cell, _cells(row, result['timed_side'])))} |" for row in ran(result)),
        "",
        f"- Output, gradients: how far the patched network is from its own fp64 run, on an image of {result['side']}x"
        f"{result['side']}; in brackets, how far the published one is in fp32. Output: the largest difference over the "
        "largest value. Gradients: the norm of the difference over the norm, all together. Worst gradient: the largest "
        "difference over the largest value, in the parameter where that is the most.",
        "- Saved: what autograd keeps for the backward pass, as published and patched. Step: forward and backward; the "
        "time as published over the time patched, the median of rounds by turns and their range. Both are of an image "
        f"of {result['timed_side']}x{result['timed_side']} (or as said in brackets), batch 1.",
    ]
    notes: dict[str, list[str]] = {}
    for row in ran(result):
        notes.setdefault(row["note"], []).append(row["name"])
    lines += [f"- {', '.join(names)}: {_cell(note)}." for note, names in notes.items() if note]
    lines += [
        f"- {row['name']} was not run: {_cell(row['failed'])}." for row in result["rows"] if "failed" in row
    ]
    return "\n".join(lines) + "\n"


def ran(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if "failed" not in row]


def put_into(page: str, result: dict[str, Any]) -> str:
    """``page`` with the table between its two comments."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must have one {BEGIN} and one {END}, got another number. Add them.")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(result)}{END}{rest.split(END)[1]}"


def _cells(row: dict[str, Any], timed_side: int) -> tuple[str, ...]:
    commit = row["commit"].split()[0]
    link = f"https://github.com/{row['repository']}/tree/{commit}"
    ours, own = row["errors"]["patched"], row["errors"]["published"]
    saved, image = row["saved_bytes"], row["timed_image"]
    other = "" if image.endswith(f"x{timed_side}x{timed_side}") else f" ({image})"
    return (
        f"{row['name']} ({row['configuration']})",
        f"[{row['repository']}]({link}) {row['commit'][:7]}",
        f"{row['parameters'] / 1e6:.1f} M",
        ", ".join(f"{count} x {kind}" for kind, count in row["taken"].items()) or "nothing",
        *(f"{ours[what]:.1e} ({own[what]:.1e})" for what in ERRORS),
        f"{saved['published'] / 2**20:.0f} to {saved['patched'] / 2**20:.0f}{other}",
        _step(row.get("time")),
    )


def _step(time: dict[str, Any] | None) -> str:
    if time is None:
        return "not timed"
    seconds = f"{time['published_seconds']:.2f} s to {time['patched_seconds']:.2f} s"
    return f"{time['ratio']:.2f}x ({time['ratio_least']:.2f} to {time['ratio_most']:.2f}), {seconds}"


def _left(row: dict[str, Any]) -> list[str]:
    if not row["left"]:
        return [f"- {row['name']}: nothing that looked like a block of ours"]
    lines = [f"- {row['name']}"]
    for left in row["left"]:
        more = (
            f" and {left['count'] - len(left['examples'])} more"
            if left["count"] > len(left["examples"])
            else ""
        )
        names = ", ".join(f"`{name}`" if name else "the network itself" for name in left["examples"])
        lines.append(f"  - {names}{more} ({left['kind']}): {_cell(left['why'])}")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, metavar="FILE.json")
    parser.add_argument("--into", type=Path, metavar="PAGE.md")
    args = parser.parse_args(argv)
    result = json.loads(args.result.read_text())
    if args.into is None:
        print(markdown(result), end="")
    else:
        args.into.write_text(put_into(args.into.read_text(), result))


if __name__ == "__main__":
    main()
