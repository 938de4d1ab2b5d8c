"""What every op promises to torch.func, torch.jit.trace and torch.export: plain calls' numbers, or a clear error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import cpl_kernels
from cpl_kernels import backends
from tests.kernels import spec
from tests.kernels.harness import as_tuple, assert_same_bits
from tests.kernels.spec import Case, Inputs, OpSpec
from tests.kernels.targets import Target, once, over

COUNT = 3  # entries that vmap maps over

# The dimensions of each input that a user of torch.jit.trace and torch.export leaves open: batch, and height and width.
OPEN: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "route_topk": {"logits": (0,)},
    "route_negatives": {"logits": (0,)},
    "aggregate_prompts": {"weights": (0,), "indices": (0,)},
    "sparse_prompt": {"logits": (0,)},
    "feature_distances": {"anchor": (0, 2, 3), "others": (1, 3, 4)},
    "info_nce": dict.fromkeys(("query", "key", "targets", "query_labels", "key_labels"), (0,)),
    "layer_norm2d": {"x": (0, 2, 3)},
    "dwconv": {"x": (0, 2, 3)},
    "gated_dwconv": {"x": (0, 2, 3)},
    "channel_attention": {"qkv": (0, 2, 3)},
    "pointwise_conv": {"x": (0, 2, 3)},
    "attention_half": {"x": (0, 2, 3)},
    "feed_forward_half": {"x": (0, 2, 3)},
}


def here(op: OpSpec, target: Target) -> bool:
    return target.name in ("reference", "native")


def differentiable(op: OpSpec, target: Target) -> bool:
    return here(op, target) and bool(op.differentiable)


def function_of(case: Case, target: Target, fixed: Inputs) -> Callable[..., tuple[Tensor, ...]]:
    """The op of the inputs that are not ``fixed``."""
    return lambda inputs: as_tuple(case.call(**fixed, **inputs, backend=target.backend))


def loss_of(case: Case, target: Target, fixed: Inputs) -> Callable[..., Tensor]:
    """One number that every floating element of the result has another share in."""

    def loss(inputs: Inputs) -> Tensor:
        through = [y for y in function_of(case, target, fixed)(inputs) if y.is_floating_point()]
        shares = (torch.arange(1, y.numel() + 1, dtype=y.dtype).reshape(y.shape).sin() for y in through)
        return torch.stack([(y * share).sum() for y, share in zip(through, shares, strict=True)]).sum()

    return loss


def entries(case: Case, dtype: torch.dtype = torch.float32) -> list[Inputs]:
    return [case.inputs(dtype, seed=seed) for seed in range(COUNT)]


def stacked(every: list[Inputs], names: list[str], at: int = 0) -> Inputs:
    return {name: torch.stack([inputs[name] for inputs in every], at) for name in names}


def without(inputs: Inputs, names: list[str]) -> Inputs:
    return {name: x for name, x in inputs.items() if name not in names}


@over(lambda op: op.small, keep=here, short=once)
def test_vmap_is_a_loop(op: OpSpec, target: Target, case: Case) -> None:
    """Bit for bit, over each input by itself and over all, from the first dimension and from the last."""
    every = entries(case)
    for names in ([name] for name in every[0]):
        _check_vmap(case, target, every, names, 0)
    _check_vmap(case, target, every, list(every[0]), -1)


def _check_vmap(case: Case, target: Target, every: list[Inputs], names: list[str], at: int) -> None:
    function = function_of(case, target, without(every[0], names))
    mapped = stacked(every, names, at)
    got = torch.func.vmap(function, in_dims=(at,))(mapped)
    loop = [function({name: x.select(at, i) for name, x in mapped.items()}) for i in range(COUNT)]
    for i, y in enumerate(got):
        assert torch.equal(y, torch.stack([outs[i] for outs in loop])), f"output {i} over {names}"


@over(lambda op: op.small[:1], keep=here)
def test_vmap_over_nothing(op: OpSpec, target: Target, case: Case) -> None:
    inputs = case.inputs(torch.float32)
    function = function_of(case, target, {})
    got = torch.func.vmap(function)({name: x.new_empty((0, *x.shape)) for name, x in inputs.items()})
    for y, one in zip(got, function(inputs), strict=True):
        assert (y.shape, y.dtype) == ((0, *one.shape), one.dtype)


@over(lambda op: op.small, keep=differentiable, short=once)
def test_gradients_of_each_entry(op: OpSpec, target: Target, case: Case) -> None:
    """vmap over grad, where the inputs differ from entry to entry and where one is shared, has the bits of a loop."""
    every = entries(case)
    wanted = op.wanted(every[0])
    for names in (list(every[0]), wanted[:1]):
        shared = without(every[0], names)
        loop = []
        for inputs in every:
            leaves = {n: x.detach().requires_grad_(n in wanted) for n, x in (shared | inputs).items()}
            leaves |= {n: shared[n].detach().requires_grad_(n in wanted) for n in shared}
            grads = torch.autograd.grad(loss_of(case, target, {})(leaves), [leaves[n] for n in wanted])
            loop.append(dict(zip(wanted, grads, strict=True)))

        def gradients(mapped: Inputs, shared: Inputs = shared) -> Inputs:
            inputs = {**shared, **mapped}

            def loss(of: Inputs) -> Tensor:
                return loss_of(case, target, without(inputs, wanted))(of)

            return torch.func.grad(loss)({n: inputs[n] for n in wanted})

        got = torch.func.vmap(gradients)(stacked(every, names))
        assert_same(target, got, stacked(loop, wanted), f"over {names}")


def assert_same(target: Target, got: Inputs, expected: Inputs, context: str) -> None:
    """The same bits; of the reference nearly: torch's matrix products of a slice, which lies elsewhere in memory, were
    seen to round otherwise on an AMD EPYC (MKL)."""
    if target.backend != "reference":
        return assert_same_bits(got, expected, context)
    for name, value in got.items():
        eps = torch.finfo(value.dtype).eps
        torch.testing.assert_close(
            value, expected[name], rtol=32 * eps, atol=32 * eps, msg=f"{context} {name}"
        )
    return None


@over(
    lambda op: op.small[:1],
    keep=lambda op, t: differentiable(op, t) and t.computes(op, torch.float64),
    short=once,
)
def test_jacobians_are_those_of_the_formula(op: OpSpec, target: Target, case: Case) -> None:
    """And the gradient through vmap is the sum of each entry's: the other order of the two."""
    inputs = case.inputs(torch.float64)
    wanted, fixed = op.wanted(inputs), without(inputs, op.wanted(inputs))
    of = {name: inputs[name] for name in wanted}

    def floating(outs: Any) -> tuple[Tensor, ...]:
        return tuple(y for y in as_tuple(outs) if y.is_floating_point())

    got = torch.func.jacrev(lambda x: floating(case.call(**fixed, **x, backend=target.backend)))(of)
    expected = torch.func.jacrev(lambda x: floating(case.naive(**fixed, **x)))(of)
    for ours, theirs in zip(got, expected, strict=True):
        for name in wanted:  # two orders of summation in fp64
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-11)

    every = entries(case, torch.float64)
    loss = loss_of(case, target, fixed)
    mapped = stacked(every, wanted)
    summed = torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum())(mapped)
    each = torch.func.vmap(torch.func.grad(loss))(mapped)
    for (
        name
    ) in wanted:  # info_nce makes its gradients in another pass where it cannot see that they are wanted
        torch.testing.assert_close(summed[name], each[name], rtol=1e-9, atol=1e-11)


@over(lambda op: op.small[:1], keep=differentiable, short=once)
def test_what_is_no_derivative_is_an_error(op: OpSpec, target: Target, case: Case) -> None:
    """Forward mode and second derivatives: never zeros, never the part that happens to be known."""
    inputs = case.inputs(torch.float32)
    wanted = op.wanted(inputs)
    for name in wanted:
        fixed, x = without(inputs, [name]), inputs[name]
        loss = loss_of(case, target, fixed)

        def of(x: Tensor, name: str = name, loss: Callable[..., Tensor] = loss) -> Tensor:
            return loss({name: x}).square()

        forward = r"no derivative in forward mode.*cpl_kernels\.\w+\.reference import"
        second = r"no second derivative.*from cpl_kernels\.\w+\.reference import"
        with pytest.raises(RuntimeError, match=forward):
            torch.func.jvp(of, (x,), (x,))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=forward):
            of(forward_ad.make_dual(x, x))
        with pytest.raises(RuntimeError, match=f"{forward}|{second}"):
            torch.func.hessian(of)(x)
        with pytest.raises(RuntimeError, match=second):
            torch.func.grad(lambda x, of=of: torch.func.grad(of)(x).square().sum())(x)
    for first in wanted:  # of one input's gradient with respect to another
        for then in wanted:
            if first == then:
                continue
            fixed = without(inputs, [first, then])
            loss = loss_of(case, target, fixed)

            def mixed(
                x: Tensor, first: str = first, then: str = then, loss: Callable[..., Tensor] = loss
            ) -> Tensor:
                inner = torch.func.grad(lambda w: loss({first: w, then: x}).square())
                return inner(inputs[first]).square().sum()

            with pytest.raises(RuntimeError, match=second):
                torch.func.grad(mixed)(inputs[then])


def open_in(op: OpSpec, inputs: Inputs, name: str) -> list[int]:
    return [dim for dim in OPEN[op.name].get(name, ()) if dim < inputs[name].dim()]


def grown(op: OpSpec, inputs: Inputs, by: int) -> Inputs:
    """``by`` more in every open dimension: the first entries once more."""
    inputs = dict(inputs)
    for name in inputs:
        for dim in open_in(op, inputs, name):
            x = inputs[name]
            index = torch.arange(x.shape[dim] + by) % x.shape[dim]
            inputs[name] = x.index_select(dim, index)
    return inputs


DEFAULT = over(lambda op: op.small[:1], keep=lambda op, target: target.name == "reference")


@DEFAULT
def test_a_trace_follows_the_sizes(op: OpSpec, target: Target, case: Case) -> None:
    """Made at one size it is right at others, and no number of a shape has become a constant (torch warns of these)."""
    inputs = case.inputs(torch.float32)
    names = list(inputs)

    def function(*values: Tensor) -> Any:
        return case.call(**dict(zip(names, values, strict=True)))

    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(function, tuple(inputs.values()))
    for by in (0, 1, 5):
        other = tuple(grown(op, inputs, by).values())
        for got, expected in zip(as_tuple(traced(*other)), as_tuple(function(*other)), strict=True):
            assert torch.equal(got, expected), f"{by} more"


class Call(torch.nn.Module):
    def __init__(self, case: Case, names: list[str]) -> None:
        super().__init__()
        self.case, self.names = case, names

    def forward(self, *values: Tensor) -> Any:
        return self.case.call(**dict(zip(self.names, values, strict=True)))


@DEFAULT
def test_an_export_follows_the_sizes(op: OpSpec, target: Target, case: Case) -> None:
    inputs = case.inputs(torch.float32)
    auto = torch.export.Dim.DYNAMIC  # an error where a size becomes a constant
    shapes = tuple(dict.fromkeys(open_in(op, inputs, name), auto) for name in inputs)
    call = Call(case, list(inputs))
    exported = torch.export.export(call, tuple(inputs.values()), dynamic_shapes={"values": shapes}).module()
    for by in (0, 1, 5):
        other = grown(op, inputs, by)
        got, expected = as_tuple(exported(*other.values())), as_tuple(case.call(**other))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), f"{by} more"


def test_every_op_says_which_sizes_are_open() -> None:
    assert set(OPEN) == set(backends.OPS)
    for op in spec.everything():
        made = [set(case.inputs(torch.float32)) for case in (*op.small, *op.cases)]
        assert set(OPEN[op.name]) <= set().union(*made), f"{op.name} has no such input"


class Resized(torch.nn.Module):
    """A prompt of another tensor's size, as in a network."""

    def forward(self, weights: Tensor, indices: Tensor, prompts: Tensor, like: Tensor) -> Tensor:
        return cpl_kernels.aggregate_prompts(weights, indices, prompts, like.shape[2:])


@pytest.mark.parametrize("how", ["trace", "export"])
def test_a_prompt_follows_the_size_it_is_asked_for(how: str) -> None:
    prompts = torch.randn(4, 3, 5, 5, requires_grad=True)
    weights, indices = torch.rand(2, 2), torch.tensor([[0, 3], [2, 2]])
    given = (weights, indices, prompts, torch.empty(2, 1, 6, 7))
    if how == "trace":
        made: Callable[..., Tensor] = torch.jit.trace(Resized(), given)
    else:
        auto = torch.export.Dim.DYNAMIC
        made = torch.export.export(Resized(), given, dynamic_shapes=({}, {}, {}, {2: auto, 3: auto})).module()
    for height, width in ((6, 7), (5, 5), (13, 2)):
        other = (*given[:3], torch.empty(2, 1, height, width))
        got, expected = made(*other), Resized()(*other)
        assert torch.equal(got, expected)
        (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), [prompts]) for y in (got, expected))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_a_seed_drawn_within_vmap_obeys_randomness(randomness: str) -> None:
    logits = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))[:1].expand(6, 3, 8)

    def draw(x: Tensor) -> Tensor:
        return cpl_kernels.route_negatives(x, 2, 3)[1]

    mapped = torch.func.vmap(draw, randomness=randomness)
    if randomness == "error":
        with pytest.raises(RuntimeError, match="random"):
            mapped(logits)
        return
    drawn = mapped(logits)
    same = all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert same == (randomness == "same")
