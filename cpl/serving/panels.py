"""What the page says of a restored photo, as HTML; every text that comes from outside is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from cpl.inference.inspect.usage import Likely, Usage
from cpl.inference.routing import LEVEL_NAMES, Choice
from cpl.serving.session import Answer

_MOST_SHOWN = 12  # prompts of a level; of more, those with the largest shares

CSS = """
.cpl-panel { font-size: 14px; line-height: 1.45 }
.cpl-panel h3 { font-size: 16px !important; margin: 0 0 .2rem !important; font-weight: 600 }
.cpl-panel p { margin: .1rem 0 .6rem; opacity: .85 }
.cpl-levels { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem 2rem }
.cpl-levels + h3 { margin-top: 1.2rem !important }
.cpl-panel table, .cpl-panel tr, .cpl-panel th, .cpl-panel td { border: 0 !important; background: none !important }
.cpl-panel table { width: 100%; border-collapse: collapse; margin: 0 !important; table-layout: fixed }
.cpl-panel caption { text-align: left; padding-bottom: .2rem; opacity: .7; caption-side: top }
.cpl-panel th, .cpl-panel td { padding: .12rem .4rem .12rem 0 !important; font-weight: 400 !important }
.cpl-panel th { text-align: left }
.cpl-panel td.cpl-number { text-align: right; width: 3.6rem; font-variant-numeric: tabular-nums }
.cpl-panel th { width: 5.4rem; white-space: nowrap }
.cpl-bar { display: block; height: .8rem; border-radius: 3px; background: #94a3b8; min-width: 2px }
.cpl-chosen th, .cpl-chosen td.cpl-number { font-weight: 600 !important }
.cpl-chosen .cpl-bar { background: #2563eb }
.cpl-track { background: rgba(148, 163, 184, .22); border-radius: 3px }
.cpl-likely { max-width: 34rem }
.cpl-alert { border-left: 4px solid #dc2626; background: rgba(220, 38, 38, .08) }
.cpl-alert { padding: .6rem .9rem; border-radius: 4px }
.cpl-scores { font-size: 17px }
"""


def message(text: str) -> str:
    """Something that went wrong, said to the visitor."""
    return f'<div class="cpl-panel cpl-alert" role="alert">{html.escape(text)}</div>'


def summary(answer: Answer) -> str:
    """What was done, and how well."""
    height, width = answer.before.shape[:2]
    if answer.degradation:
        said = f"{width}×{height} pixels, {plain(answer.degradation)} added and restored."
    else:
        said = f"{width}×{height} pixels, restored as it was."
    parts = [f"<p>{html.escape(said)}</p>"]
    if answer.scores is not None:
        before, after = (_decibels(score) for score in answer.scores)
        parts.append(f'<p class="cpl-scores">PSNR against the original: {before} → <b>{after}</b></p>')
    return f'<div class="cpl-panel">{"".join(parts)}</div>'


def routing(choices: Sequence[Choice], likely: Likely | None = None, usage: Usage | None = None) -> str:
    """A table a level: every prompt's share, those that were chosen, and with what weight; and what these look like."""
    if not choices:
        return '<div class="cpl-panel"><p>This network has no prompts.</p></div>'
    tables = "".join(_level(choice) for choice in sorted(choices, key=lambda choice: -choice.level))
    return (
        '<div class="cpl-panel"><h3>Which prompts were chosen</h3>'
        "<p>The routers' shares at the decoder's three levels; what is blue was taken, with that weight.</p>"
        f'<div class="cpl-levels">{tables}</div>{"" if likely is None else _likely(likely, usage)}</div>'
    )


def plain(name: str) -> str:
    """low_light -> low light"""
    return name.replace("_", " ")


def _level(choice: Choice) -> str:
    taken = dict(zip(choice.chosen, choice.weights, strict=True))
    order = sorted(range(len(choice.shares)), key=lambda n: -choice.shares[n])[:_MOST_SHOWN]
    rows = "".join(
        _row(
            f"prompt {n + 1}",
            choice.shares[n],
            f"{taken[n]:.2f}" if n in taken else _percent(choice.shares[n]),
            n in taken,
        )
        for n in sorted(order)
    )
    left = len(choice.shares) - len(order)
    more = f"<tr><th>and {left} more</th><td></td><td></td></tr>" if left else ""
    caption = html.escape(f"Level {choice.level}, {LEVEL_NAMES[choice.level]}")
    return (
        f'<table data-level="{choice.level}"><caption>{caption}</caption><tbody>{rows}{more}</tbody></table>'
    )


def _likely(likely: Likely, usage: Usage | None) -> str:
    best = [plain(task) for task in likely.tasks]
    if likely.decided:
        said = f"The prompts look like those for <b>{html.escape(best[0])}</b>."
    else:
        said = f"The prompts do not tell these apart: {html.escape(', '.join(best))}."
    if usage is not None and usage.judged:
        said += f" (Right for {usage.right} of {usage.judged} inspected pictures.)"
    rows = "".join(
        _row(plain(task), share, _percent(share), task in likely.tasks)
        for task, share in list(likely.likeness.items())[:_MOST_SHOWN]
    )
    return f'<h3>What it takes the photo for</h3><p>{said}</p><table class="cpl-likely"><tbody>{rows}</tbody></table>'


def _row(name: str, share: float, number: str, chosen: bool) -> str:
    kind = ' class="cpl-chosen"' if chosen else ""
    width = 100 * min(max(share, 0.0), 1.0)
    bar = f'<div class="cpl-track"><span class="cpl-bar" style="width: {width:.1f}%"></span></div>'
    return (
        f'<tr{kind}><th scope="row">{html.escape(name)}</th><td>{bar}</td>'
        f'<td class="cpl-number">{number}</td></tr>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _decibels(score: float) -> str:
    return "equal" if math.isinf(score) else f"{score:.2f} dB"
