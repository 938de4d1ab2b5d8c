"""torch.compile(fullgraph=True) with Python numbers that change between calls, and so become symbols in the graph.

Every number among the arguments of a public function of cpl_kernels and cpl.losses stands here; a test below looks
at the signatures, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import cpl_kernels
from cpl import losses

RNG = torch.Generator().manual_seed(0)
Q, K = (torch.randn(4, 5, generator=RNG) for _ in range(2))
IMAGE = torch.randn(2, 6, 5, 5, generator=RNG)
ONES = torch.ones(6)
QKV, PROJECT, EXPANDED = (
    torch.randn(out, into, 1, 1, generator=RNG) for out, into in ((18, 6), (6, 6), (6, 9))
)
DEPTHWISE, HEADS = torch.randn(18, 1, 3, 3, generator=RNG), torch.ones(2, 1, 1)
LAYERS = [torch.randn(2, 3, 4, generator=RNG), torch.randn(2, 5, generator=RNG)]
OTHERS = [torch.randn(3, 2, 3, 4, generator=RNG), torch.randn(3, 2, 5, generator=RNG)]
LOGITS = torch.randn(4, 7, generator=RNG)
PROMPTS = torch.randn(7, 4, 8, 8, generator=RNG)
WEIGHTS, INDICES = cpl_kernels.route_topk(LOGITS, 2)
SEED = torch.tensor(3)
LABELS = torch.tensor([0, 1, 0, 1])
PICTURES = [torch.rand(2, 3, 8, 8, generator=RNG) for _ in range(2)]
NEGATIVES = torch.rand(3, 2, 3, 8, 8, generator=RNG)
PIXELS = losses.PixelFeatures()


@dataclass(frozen=True)
class Numbers:
    """``call`` of each tuple of ``values`` in turn; ``names``: the arguments they stand for."""

    owner: Callable[..., Any]
    names: tuple[str, ...]
    call: Callable[..., Any]
    values: tuple[tuple[Any, ...], ...]


def prompt_loss(form: str) -> Callable[..., Any]:
    def call(weight: Any, temperature: Any, margin: Any, eps: Any, layer: Any, chunk: Any) -> Any:
        loss = losses.ContrastivePromptRegularization(
            form, PIXELS, (layer,), weight, margin, temperature, eps=eps, negative_chunk=chunk
        )
        return loss(*PICTURES, NEGATIVES)

    return call


PROMPT_NAMES = ("weight", "temperature", "margin", "eps", "layer_weights", "negative_chunk")
PROMPT_VALUES = ((1e-3, 0.1, 0.3, 1e-7, 1.0, 3), (2e-3, 0.2, 0.4, 1e-6, 0.5, 4), (1, 1, 1, 1, 1, 5))
CASES = {
    "info_nce": Numbers(
        cpl_kernels.info_nce,
        ("temperature", "ignore_index"),
        lambda t, i: cpl_kernels.info_nce(Q, K, LABELS, temperature=t, ignore_index=i),
        ((0.07, -100), (0.1, 1), (1, 0)),
    ),
    "layer_norm2d": Numbers(
        cpl_kernels.layer_norm2d,
        ("eps",),
        lambda eps: cpl_kernels.layer_norm2d(IMAGE, ONES, None, eps),
        ((1e-5,), (1e-3,), (1,)),
    ),
    "feature_distances": Numbers(
        cpl_kernels.feature_distances,
        ("p", "layer_weights"),
        lambda p, a, b: cpl_kernels.feature_distances(LAYERS, OTHERS, p, layer_weights=[a, b]),
        ((1, 0.2, 0.3), (2, 0.5, 1.0), (1, 1, 2)),
    ),
    "route_topk": Numbers(
        cpl_kernels.route_topk,
        ("k",),
        lambda k: cpl_kernels.route_topk(LOGITS, k),
        ((1,), (2,), (3,)),
    ),
    "route_negatives": Numbers(
        cpl_kernels.route_negatives,
        ("k", "num_negatives"),
        lambda k, n: cpl_kernels.route_negatives(LOGITS, k, n, seed=SEED),
        ((1, 2), (2, 3), (3, 4)),
    ),
    "aggregate_prompts": Numbers(
        cpl_kernels.aggregate_prompts,
        ("size",),
        lambda h, w: cpl_kernels.aggregate_prompts(WEIGHTS, INDICES, PROMPTS, (h, w)),
        ((5, 6), (9, 4), (8, 8)),
    ),
    "sparse_prompt": Numbers(
        cpl_kernels.sparse_prompt,
        ("k", "size"),
        lambda k, h, w: cpl_kernels.sparse_prompt(LOGITS, PROMPTS, k, (h, w)),
        ((1, 5, 6), (2, 9, 4), (3, 8, 8)),
    ),
    "attention_half": Numbers(
        cpl_kernels.attention_half,
        ("eps",),
        lambda eps: cpl_kernels.attention_half(IMAGE, ONES, None, QKV, DEPTHWISE, HEADS, PROJECT, eps=eps),
        ((1e-5,), (1e-3,), (1,)),
    ),
    "feed_forward_half": Numbers(
        cpl_kernels.feed_forward_half,
        ("eps",),
        lambda eps: cpl_kernels.feed_forward_half(IMAGE, ONES, None, QKV, DEPTHWISE, EXPANDED, eps=eps),
        ((1e-5,), (1e-3,), (1,)),
    ),
    "InfoNCELoss": Numbers(
        losses.InfoNCELoss,
        ("temperature", "ignore_index", "max_logit_scale"),
        lambda t, i, m: losses.InfoNCELoss(t, ignore_index=i, max_logit_scale=m)(Q, K, LABELS),
        ((0.07, -100, 100.0), (0.1, 1, 50.0), (1, 0, 20)),
    ),
    "NTXentLoss": Numbers(
        losses.NTXentLoss,
        ("temperature", "max_logit_scale"),
        lambda t, m: losses.NTXentLoss(t, max_logit_scale=m)(Q, K),
        ((0.07, 100.0), (0.1, 50.0), (1, 20)),
    ),
    "SupConLoss": Numbers(
        losses.SupConLoss,
        ("temperature", "ignore_index", "max_logit_scale"),
        lambda t, i, m: losses.SupConLoss(t, ignore_index=i, max_logit_scale=m)(Q, LABELS),
        ((0.07, -100, 100.0), (0.1, 1, 50.0), (1, 0, 20)),
    ),
    **{
        form: Numbers(losses.ContrastivePromptRegularization, PROMPT_NAMES, prompt_loss(form), PROMPT_VALUES)
        for form in ("subtractive", "ratio", "infonce")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_that_change_between_calls_stay_in_one_graph(case):
    torch._dynamo.reset()
    numbers = CASES[case]
    compiled = torch.compile(numbers.call, backend="aot_eager", fullgraph=True)
    for values in (*numbers.values, numbers.values[0]):
        torch.testing.assert_close(compiled(*values), numbers.call(*values), rtol=0, atol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [losses.InfoNCELoss, losses.NTXentLoss])
def test_a_schedule_of_the_temperature_stays_in_one_graph(kind):
    """A loss whose attribute a training loop changes, with gradients."""
    torch._dynamo.reset()
    loss, query = kind(), Q.clone().requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for temperature in (0.1, 0.2, 0.3):
        loss._temperature = temperature
        ours, wanted = (torch.autograd.grad(run(query, K), query)[0] for run in (compiled, loss))
        torch.testing.assert_close(ours, wanted)
    torch._dynamo.reset()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-40, 1e39])
def test_a_temperature_that_cannot_be_is_still_refused(bad):
    with pytest.raises(ValueError, match="temperature must be a positive finite number"):
        cpl_kernels.info_nce(Q, K, temperature=bad)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: cpl_kernels.info_nce(Q, K, temperature=t), backend="aot_eager")
    for good in (0.1, 0.2):
        compiled(good)
    with pytest.raises(ValueError, match="temperature must be a positive finite number"):
        compiled(bad)
    torch._dynamo.reset()


def test_no_number_is_forgotten():
    """Every argument annotated with int or float of a public function or loss is in a case."""
    functions = [value for value in vars(cpl_kernels).values() if inspect.isfunction(value)]
    classes = [
        losses.InfoNCELoss,
        losses.NTXentLoss,
        losses.SupConLoss,
        losses.ContrastivePromptRegularization,
    ]
    for owner in (*functions, *classes):
        named = {name for case in CASES.values() if case.owner is owner for name in case.names}
        wanted = {
            name
            for name, argument in inspect.signature(owner).parameters.items()
            if {"int", "float", "Sequence[float]", "tuple[int, int]"}
            & {part.strip() for part in str(argument.annotation).split("|")}
        } - {"seed"}  # a tensor under torch.compile, as its docstring says
        assert wanted <= named, owner
