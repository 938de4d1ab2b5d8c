"""An inspection as files: tables for programs, charts and one page for people."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cpl.files import atomic_write
from cpl.inference.inspect import charts
from cpl.inference.inspect.measure import Inspection
from cpl.inference.inspect.usage import Usage

# What an inspection writes, in this order: the page last, so that a page is never without its files.
FILES = (
    "usage.json",
    "usage.csv",
    "usage.png",
    "distances.json",
    "distances.csv",
    "distances.png",
    "pictures.jpg",
    "index.html",
)
_NUMBERS = ("distance", "degraded_psnr", "restored_psnr", "negative_psnr")


def write_report(
    inspection: Inspection, usage: Usage, output: str | os.PathLike[str], dense: bool
) -> list[Path]:
    """Write all of :data:`FILES` that there are into the folder ``output``, made if missing.

    Without negatives there are no distances. Everything is made before the first file is written, and each
    is written whole or not at all.

    Args:
        dense: the network mixes all prompts, so that the heat map shows weights.

    Returns:
        The files written.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder = Path(output)
    usage.info = {**inspection.info, "degradations": inspection.degradations}
    contents: dict[str, bytes] = {
        "usage.json": _json(usage.to_dict()),
        "usage.csv": _csv(("degradation", "level", "prompt", "chosen", "share"), _usage_rows(usage)),
        "usage.png": charts.heat_map(usage, dense),
        "pictures.jpg": charts.sheet(inspection.pictures),
    }
    if not inspection.without_negatives:
        contents["distances.json"] = _json(_distances(inspection))
        contents["distances.csv"] = _csv(("degradation", "photo", *_NUMBERS), _distance_rows(inspection))
        contents["distances.png"] = charts.distances(inspection)
    contents["index.html"] = page(inspection, usage, contents).encode()
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / name for name in FILES if name in contents]
    for name in FILES:
        if name not in contents:  # of an earlier look at another model
            (folder / name).unlink(missing_ok=True)
    for path in written:
        with atomic_write(path) as file:
            file.write(contents[path.name])
    return written


def page(inspection: Inspection, usage: Usage, contents: dict[str, bytes]) -> str:
    """One HTML page with the charts in it; needs no other file and no network."""
    about = inspection.info
    facts = [
        (key, about[key])
        for key in ("checkpoint", "architecture", "step", "photos", "crop", "seed")
        if about.get(key) is not None
    ]
    items = "".join(f"<dt>{_text(key)}</dt><dd>{_text(_listed(value))}</dd>" for key, value in facts)
    degradations = "".join(
        f"<li><code>{_text(task)}</code>{'' if task == spec else f': <code>{_text(spec)}</code>'}</li>"
        for task, spec in inspection.degradations.items()
    )
    judged = (
        f"<p>Judged by the usage of the other photos, the degradation was named rightly for {usage.right} of "
        f"{usage.judged} pictures (<code>cpl serve --usage</code> names it so).</p>"
        if usage.judged
        else ""
    )
    tables = [name for name in FILES if name in contents and name.endswith((".json", ".csv"))]
    numbers = ", ".join(f'<a href="{name}">{name}</a>' for name in tables)
    if inspection.without_negatives:
        wrong = f"<p>No distances: {_text(inspection.without_negatives)}.</p>"
    else:
        wrong = (
            f"<p>Each photo was restored once with the prompts that the routers choose, and {inspection.num_negatives} "
            "times with others, drawn at random (negatives, as training draws them). The further a wrong prompt leads "
            "from the right one, the more the prompts matter.</p>"
            f"{_image(contents['distances.png'], 'image/png', 'distances')}{_table(inspection)}"
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Prompts of {_text(about.get("checkpoint", "a model"))}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937 }}
img {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .25rem .75rem; border-bottom: 1px solid #e5e7eb; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }}
dt {{ color: #6b7280 }}
dd {{ margin: 0; overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>What the prompts do</h1>
<dl>{items}</dl>
<h2>Which prompts are chosen</h2>
<p>At three levels of the decoder a router looks at the features and picks prompts. Level 3, on an eighth
of the size, is decided first, and level 1, on half of it, last. A network that tells degradations apart gives
its rows different columns.</p>
{_image(contents["usage.png"], "image/png", "prompt usage")}
{_information(usage)}
{judged}
<h2>Right and wrong prompts</h2>
{wrong}
<h2>How it looks</h2>
{_image(contents["pictures.jpg"], "image/jpeg", "pictures")}
<h2>The degradations</h2>
<ul>{degradations}</ul>
<p>The numbers: {numbers}</p>
</body>
</html>
"""


def summary(inspection: Inspection, usage: Usage) -> list[str]:
    """What matters, in a line or two: whether routers tell degradations apart, and what wrong prompts cost."""
    lines = []
    known = {level: value for level, value in usage.information.items() if value is not None}
    if known:
        parts = ", ".join(
            f"{value:.0%} at level {level}" for level, value in sorted(known.items(), reverse=True)
        )
        lines.append(f"the choice of a prompt tells {parts} of what it could tell of the degradation")
    if not inspection.without_negatives:
        costs = [
            right - wrong
            for task in inspection.degradations
            if (right := inspection.mean(task, "restored_psnr")) is not None
            and (wrong := inspection.mean(task, "negative_psnr")) is not None
        ]
        weights = ", with their own weights" if inspection.negative_weights == "own" else ""
        if costs:
            lines.append(
                f"wrong prompts cost {math.fsum(costs) / len(costs):.2f} dB on the mean of the degradations{weights}"
            )
    return lines


def _information(usage: Usage) -> str:
    known = [(level, value) for level, value in sorted(usage.information.items()) if value is not None]
    if not known:
        return ""
    rows = "".join(f"<tr><td>level {level}</td><td>{value:.2f}</td></tr>" for level, value in reversed(known))
    return (
        "<p>What the choice of a prompt tells of the degradation (mutual information, as a part of what it could tell: "
        f"0 nothing, 1 all; less what so few photos show by chance):</p><table><tbody>{rows}</tbody></table>"
    )


def _table(inspection: Inspection) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("degradation", "photos", "distance", "degraded, dB", "restored, dB", "wrong prompts, dB")
    )
    body = "".join(
        f"<tr><td>{_text(task)}</td><td>{len(inspection.of(task))}</td>"
        + "".join(
            f"<td>{_cell(inspection.mean(task, name), 4 if name == 'distance' else 2)}</td>"
            for name in _NUMBERS
        )
        + "</tr>"
        for task in inspection.tasks
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _distances(inspection: Inspection) -> dict[str, Any]:
    return {
        "num_negatives": inspection.num_negatives,
        "tasks": {
            task: {
                "photos": len(inspection.of(task)),
                **{name: _finite(inspection.mean(task, name)) for name in _NUMBERS},
            }
            for task in inspection.tasks
        },
        "images": [
            {
                "task": image.task,
                "name": image.name,
                **{name: _finite(getattr(image, name)) for name in _NUMBERS},
            }
            for image in inspection.images
        ],
        "info": {**inspection.info, "degradations": inspection.degradations},
    }


def _usage_rows(usage: Usage) -> Iterable[tuple[Any, ...]]:
    for task, levels in usage.tasks.items():
        for level, use in sorted(levels.items()):
            for n, (chosen, share) in enumerate(zip(use.chosen, use.shares, strict=True), start=1):
                yield task, level, n, f"{chosen:.6g}", f"{share:.6g}"


def _distance_rows(inspection: Inspection) -> Iterable[tuple[Any, ...]]:
    for image in inspection.images:
        numbers = (_finite(getattr(image, name)) for name in _NUMBERS)
        yield image.task, image.name, *("" if n is None else f"{n:.6g}" for n in numbers)


def _csv(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=1, allow_nan=False).encode() + b"\n"


def _finite(value: float | None) -> float | None:
    """A number that JSON can hold: the PSNR of equal pictures is infinite, and None here."""
    return value if value is not None and math.isfinite(value) else None


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else "equal" if math.isinf(value) else f"{value:.{digits}f}"


def _image(data: bytes, kind: str, alt: str) -> str:
    return f'<p><img alt="{alt}" src="data:{kind};base64,{base64.b64encode(data).decode()}"></p>'


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))
