"""Specifications: what may be written, what is refused, and with which words."""

from __future__ import annotations

import numpy as np
import pytest

from cpl import degradations
from cpl.degradations.parameters import Choice, Range

COMPOSITION = "low_light+rain+haze"


def same(first: degradations.Degradation, second: degradations.Degradation) -> bool:
    image = np.linspace(0, 1, 12 * 9 * 3, dtype=np.float32).reshape(12, 9, 3)
    results = [d(image, np.random.default_rng(3)) for d in (first, second)]
    return str(first) == str(second) and np.array_equal(*results)


def test_names_are_those_that_are_promised() -> None:
    assert degradations.names() == [
        "noise", "blur", "motion_blur", "defocus_blur", "rain", "haze", "low_light", "snow", "jpeg",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*degradations.names(), COMPOSITION])
def test_text_of_a_degradation_makes_it_again(name: str) -> None:
    made = degradations.create(name)
    assert made.name == name
    assert same(made, degradations.create(str(made)))


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("noise:sigma=25", {"name": "noise", "sigma": 25}),
        ("noise:sigma=15|25|50", {"name": "noise", "sigma": [15, 25, 50]}),
        ("haze:beta=0.6..1.8", {"name": "haze", "beta": {"min": 0.6, "max": 1.8}}),
        ("haze:beta=0.6..1.8", {"name": "haze", "beta": "0.6..1.8"}),
        ("rain:blend=screen,angle=-20", {"name": "rain", "blend": "screen", "angle": -20}),
        (" noise : sigma = 25 + haze", {"compose": ["noise:sigma=25", {"name": "haze"}]}),
        ("jpeg:quality=12,chroma=4:2:2", {"name": "jpeg", "quality": 12, "chroma": "4:2:2"}),
    ],
)
def test_text_and_mapping_agree(text: str, mapping: dict) -> None:
    assert same(degradations.create(text), degradations.create(mapping))


def test_choice_and_range_are_told_apart() -> None:
    assert degradations.Noise(sigma="15|25").sigma == Choice((15.0, 25.0))
    assert degradations.Noise(sigma="15..25").sigma == Range(15.0, 25.0)
    assert degradations.Noise(sigma="1e+1").sigma == Choice((10.0,))
    assert degradations.create("noise:sigma=1e+1+jpeg").name == "noise+jpeg"


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("nois", ["'nois'", "did you mean noise?", "defocus_blur"]),
        ("", ["''", "there are noise"]),
        ("noise+", ["'noise+'", "there are"]),
        ("noise:sigm=25", ["'sigm'", "did you mean sigma?"]),
        ("noise:sigma=-1", ["sigma=-1", "0 to 255", "8-bit"]),
        ("noise:sigma=abc", ["'abc'", "15|25|50"]),
        ("noise:sigma=nan", ["sigma=nan", "0 to 255"]),
        ("noise:sigma=inf", ["0 to 255"]),
        ("noise:sigma=50..15", ["backwards", "15..50"]),
        ("noise:sigma=1..2..3", ["two ends"]),
        ("noise:sigma", ["'sigma'", "key=value"]),
        ("noise:", ["key=value"]),
        ("noise:sigma=1,sigma=2", ["given twice"]),
        ("rain:blend=multiply", ["'multiply'", "screen, additive"]),
        ("jpeg:quality=0", ["1 to 95"]),
        ({"sigma": 25}, ["needs a name"]),
        ({"name": "noise", "sigma": []}, ["at least one"]),
        ({"name": "noise", "sigma": True}, ["True", "no number"]),
        ({"name": "noise", "sigma": {"low": 1}}, ["{min: ..., max: ...}", "low"]),
        ({"compose": "noise"}, ["takes a list", "'noise'"]),
        ({"compose": []}, ["at least one"]),
        ({"compose": ["noise"], "sigma": 3}, ["stands alone", "sigma"]),
    ],
)
def test_bad_specification_is_refused_with_value_and_remedy(specification: object, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        degradations.create(specification)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="got int"):
        degradations.create(25)  # type: ignore[arg-type]


def test_a_choice_is_drawn_for_every_image() -> None:
    noise, rng = degradations.create("noise:sigma=5|50"), np.random.default_rng(0)
    grey = np.full((32, 32, 3), 0.5, np.float32)
    deviations = sorted(float(noise(grey, rng).std() * 255) for _ in range(12))
    assert deviations[0] < 8
    assert deviations[-1] > 40


def test_every_degradation_is_documented() -> None:
    for kind in degradations.DEGRADATIONS.values():
        assert kind.formula
        assert kind.source
        assert set(kind.parameters()) == set(kind.defaults())
