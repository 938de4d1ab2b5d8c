"""The result as a Markdown page; at any time, also of a run that is not over."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

Result = Mapping[str, Any]


def outcome(stage: Result) -> str:
    """A stage's state in a few words."""
    parts = [stage["state"]]
    if "seconds" in stage:
        parts.append(f"{stage['seconds']:.0f} s")
    if "why" in stage:
        parts.append(stage["why"])
    return "; ".join(parts)


def markdown(result: Result) -> str:
    stages = result["stages"]
    machine = stages.get("machine", {})
    title = machine.get("device", "unknown device")
    lines = [f"# {title}, {result['date'][:10]}", ""]
    if result["dry"]:
        lines += [
            "A dry run: the code was run on the CPU, at small sizes and once. No figure here means anything.",
            "",
        ]
    lines += ["| stage | outcome |", "|---|---|"]
    lines += [f"| {name} | {_cell(outcome(stage))} |" for name, stage in stages.items()]
    for name, stage in stages.items():
        try:
            part = PARTS.get(name, _nothing)(stage, stages)
        except Exception as error:  # the stages to come, and the other parts, are worth more than this one
            part = [f"Not shown, see result.json: {_cell(repr(error))}"]
        if part:
            lines += ["", f"## {name[0].upper()}{name[1:]}", "", *part]
        if "tail" in stage:
            lines += ["", f"The end of what {name} printed:", "", "````", stage["tail"].rstrip(), "````"]
    return "\n".join(lines) + "\n"


def _nothing(stage: Result, stages: Result) -> list[str]:
    return []


def _machine(stage: Result, stages: Result) -> list[str]:
    facts = {key: value for key, value in stage.items() if key not in ("state", "seconds", "why", "tail")}
    return [f"- {key.replace('_', ' ')}: {_flat(value)}" for key, value in facts.items()]


def _wheels(stage: Result, stages: Result) -> list[str]:
    return [f"- {name}" for name in stage.get("wheels", ())]


def _build(stage: Result, stages: Result) -> list[str]:
    return [f"- {line}" for line in stage.get("said", ())]


def _tests(stage: Result, stages: Result) -> list[str]:
    if "closing_line" not in stage:
        return []
    more = stage["failures_left_off"]
    return [
        f"`{stage['closing_line']}`",
        *(["", *(f"- `{line}`" for line in stage["failures"])] if stage["failures"] else []),
        *([f"- and {more} more"] if more else []),
    ]


def _calls(stage: Result, stages: Result) -> list[str]:
    lines = [f"{len(stage['calls'])} calls: {', '.join(stage['calls'])}"] if stage.get("calls") else []
    lines += [f"`{stage['summary']}`"] if "summary" in stage else []
    return lines + [f"- {note}" for note in (*stage.get("notes", ()), *stage.get("errors", ()))]


def _ceilings(stage: Result, stages: Result) -> list[str]:
    if "copy_gb_per_s" not in stage:
        return []
    side = stage["matmul_side"]
    return [
        f"- copy of {stage['copy_bytes'] / 2**20:.0f} MiB, read plus written: {stage['copy_gb_per_s']:.0f} GB/s",
        *(
            f"- {dtype} matrix product, {side}x{side}x{side}: {stage[f'matmul_{dtype}_tflop_per_s']:.3g} TFLOP/s"
            for dtype in ("bfloat16", "float32")
        ),
    ]


def _benchmarks(stage: Result, stages: Result) -> list[str]:
    copy = stages.get("ceilings", {}).get("copy_gb_per_s")
    lines = [
        "Time of one call: median. Against ours: median (and quartiles) of the ratios within a round, all "
        "implementations taking turns, over inputs in turn that together exceed twice the L2 cache unless it says "
        "otherwise. "
        "GB/s: of the bytes that must move at least. Peak memory: torch's allocations in one call, beyond its inputs."
    ]
    for case in stage.get("cases", ()):
        op, index, dtype = case["case"]
        if "error" in case:
            lines += ["", f"**{op}, size {index}, {dtype}**: {_cell(case['error'])}"]
            continue
        for group, listed in groupby(case["rows"], key=lambda row: row["group"]):
            lines += ["", f"**{group}**, {case['inputs_in_turn']} inputs in turn"]
            lines[-1] += "" if case["past_l2"] else ", which fit into twice the L2 cache"
            lines += ["", *_table(list(listed), copy)]
        left = {**case["absent"], **{name: f"FAILED: {why}" for name, why in case["failed"].items()}}
        lines += ["", *(f"- not here: {name}: {_cell(why)}" for name, why in left.items())] if left else []
    return lines if len(lines) > 1 else []


def _table(rows: list[Result], copy: float | None) -> list[str]:
    with_flops = any("tflop_per_s" in row for row in rows)
    heads = [
        "implementation",
        "time, us",
        "against ours",
        "peak memory, MiB",
        "GB/s",
        "share of copy",
        "run as",
    ]
    heads += ["TFLOP/s"] if with_flops else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: row["ratio"]):
        cells = [
            row["name"],
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['ratio']:.2f}x ({row['ratio_q1']:.2f} to {row['ratio_q3']:.2f})",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}",
            f"{row['gb_per_s']:.0f}",
            f"{row['gb_per_s'] / copy:.0%}" if copy else "",
            _cell(row["how"]),
            *([f"{row['tflop_per_s']:.1f}" if "tflop_per_s" in row else ""] if with_flops else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


PARTS = {
    "machine": _machine,
    "wheels": _wheels,
    "build": _build,
    "tests": _tests,
    "small calls": _calls,
    "memcheck": _calls,
    "racecheck": _calls,
    "ceilings": _ceilings,
    "benchmarks": _benchmarks,
}
