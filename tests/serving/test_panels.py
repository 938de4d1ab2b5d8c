"""What the page says: the numbers of the answer, every text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cpl.inference.inspect import Likely, Usage
from cpl.inference.routing import Choice
from cpl.models.restorer import Restorer
from cpl.serving import panels
from cpl.serving.session import Answer, Session
from tests.serving.conftest import png


@pytest.fixture
def answer(network: Restorer, tmp_path: Path) -> Answer:
    (tmp_path / "a.png").write_bytes(png())
    return Session(network, {"low_light": "low_light"}).answer(tmp_path / "a.png", "low_light")


def rows(page: str) -> list[tuple[bool, str, float, str]]:
    """(marked, name, bar's width, number) of every table row."""
    pattern = (
        r'<tr( class="cpl-chosen")?><th scope="row">(.*?)</th>.*?width: ([\d.]+)%.*?"cpl-number">(.*?)</td>'
    )
    return [
        (bool(mark), name, float(width), number) for mark, name, width, number in re.findall(pattern, page)
    ]


def test_every_prompt_of_every_level_is_shown(answer: Answer) -> None:
    page = panels.routing(answer.choices)
    assert re.findall(r'data-level="(\d)"', page) == ["3", "2", "1"]  # in the order of deciding
    shown = rows(page)
    assert len(shown) == 15
    by_level = [shown[i : i + 5] for i in (0, 5, 10)]
    for choice, level in zip(sorted(answer.choices, key=lambda c: -c.level), by_level, strict=True):
        assert [name for _, name, _, _ in level] == [f"prompt {n}" for n in range(1, 6)]
        assert [width for _, _, width, _ in level] == pytest.approx(
            [100 * s for s in choice.shares], abs=0.06
        )
        assert [n for n, row in enumerate(level) if row[0]] == list(choice.chosen)
        assert level[choice.chosen[0]][3] == f"{choice.weights[0]:.2f}"


def test_of_many_prompts_the_likeliest_are_shown() -> None:
    shares = tuple([0.01] * 30 + [0.7])
    page = panels.routing([Choice(1, shares, (30,), (0.7,))])
    assert len(rows(page)) == 12
    assert "prompt 31" in page
    assert "and 19 more" in page


def test_scores_and_size(answer: Answer) -> None:
    text = panels.summary(answer)
    assert "40×24 pixels, low light added and restored." in text
    assert answer.scores is not None
    assert f"{answer.scores[0]:.2f} dB" in text
    assert f"{answer.scores[1]:.2f} dB" in text
    assert "equal" in panels.summary(replace(answer, scores=(float("inf"), 20.0)))
    plain = panels.summary(replace(answer, degradation="", scores=None))
    assert "restored as it was" in plain
    assert "PSNR" not in plain


def test_what_the_photo_is_taken_for(answer: Answer, usage: Usage) -> None:
    page = panels.routing(answer.choices, Likely({"low_light": 0.9, "noise": 0.4}, True), usage)
    assert "like those for <b>low light</b>" in page
    assert f"Right for {usage.right} of {usage.judged} " in page
    assert rows(page)[15:] == [(True, "low light", 90.0, "90 %"), (False, "noise", 40.0, "40 %")]
    unsure = panels.routing(answer.choices, Likely({"rain": 0.9, "noise": 0.895, "haze": 0.1}, False))
    assert "do not tell these apart: rain, noise." in unsure
    assert "takes the photo for" not in panels.routing(answer.choices)


def test_texts_are_escaped(answer: Answer) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    for page in (
        panels.message(hostile),
        panels.summary(replace(answer, degradation=hostile)),
        panels.routing(answer.choices, Likely({hostile: 1.0}, True)),
        panels.routing(answer.choices, Likely({hostile: 1.0, "b": 1.0}, False)),
    ):
        assert "<img" not in page
        assert "&lt;img src=x" in page


def test_no_prompts() -> None:
    assert "no prompts" in panels.routing([])
