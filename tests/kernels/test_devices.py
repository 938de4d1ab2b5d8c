"""A kernel of ours is launched on the device of its tensors, whichever device is the current one.

There are no two GPUs here: fake tensors say that they are on the second, and a guard that takes down what it is
told stands in for torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cpl_kernels import backends, core, registration
from tests.kernels import spec
from tests.kernels.spec import OpSpec

THERE = torch.device("cuda:1")
ENTRIES = ("forward", "forward_with_gradients", "backward", "backward_and_output")


class Current:
    """Which device is the current one: the first, but within ``torch.cuda.device``."""

    def __init__(self) -> None:
        self.index = 0

    def guard(self, device: torch.device) -> Guard:
        return Guard(self, device)


class Guard:
    def __init__(self, current: Current, device: torch.device) -> None:
        self.current, self.device = current, device

    def __enter__(self) -> None:
        self.before, self.current.index = self.current.index, self.device.index

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.current.index = self.before


class LaunchedError(Exception):
    """In place of a launch: where it would have been."""


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Current:
    here = Current()
    monkeypatch.setattr(torch.cuda, "device", here.guard)
    monkeypatch.setattr(backends, "_cannot", lambda op, name, there: None)
    monkeypatch.setattr(
        registration, "_watched", lambda args: False
    )  # fake tensors would stay with the fakes
    return here


def launching(current: Current) -> Callable[..., Any]:
    def launch(*args: Any) -> None:
        raise LaunchedError(current.index)

    return launch


FAKES = FakeTensorMode(allow_non_fake_inputs=True)


def there(x: Tensor) -> Tensor:
    with FAKES:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=THERE)


GPU = [
    pytest.param(op, name, id=f"{op.name}-{name}")
    for op in spec.everything()
    if op.name not in backends.COMPOSED
    for name in backends.backends_of(op.name)
    if backends.RUNS_ON.get(name) == "cuda"
]


@pytest.mark.parametrize(("op", "name"), GPU)
def test_every_way_into_a_backend_goes_to_the_tensors_device(
    op: OpSpec, name: str, current: Current, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of the public function; and, as backwards and autograd functions do, each entry as ``select`` gives it."""
    module = backends._module(op.name, name)
    has = [entry for entry in ENTRIES if hasattr(module, entry)]
    assert "forward" in has
    for entry in has:
        monkeypatch.setattr(module, entry, launching(current))
    monkeypatch.setattr(module, "why_not", lambda *tensors: None)
    case = op.small[0]
    inputs = {key: there(x) for key, x in case.inputs(torch.float32).items()}
    with pytest.raises(LaunchedError, match="^1$"), FAKES:
        case.call(**inputs, backend=name)
    x = next(iter(inputs.values()))
    for entry in has:
        with pytest.raises(LaunchedError, match="^1$"):
            getattr(backends.select(op.name, name, x), entry)(None, x)
    assert current.index == 0


@pytest.mark.parametrize(("op", "name"), GPU)
def test_tensors_on_the_cpu_ask_for_no_device(
    op: OpSpec, name: str, current: Current, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Triton's interpreter: torch.cuda is not touched, which may not be there."""
    monkeypatch.setattr(backends._module(op.name, name), "forward", launching(current))
    monkeypatch.setattr(backends._module(op.name, name), "why_not", lambda *tensors: None)
    with pytest.raises(LaunchedError, match="^0$"):
        backends.select(op.name, name, torch.empty(1)).forward(torch.empty(1))


def test_the_stream_is_that_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, device: torch.device | None = None) -> None:
            self.cuda_stream = 0 if device is None else 100 + device.index

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    assert core.stream_of(there(torch.empty(2))) == 101
