"""What the matrix needs to know of info_nce."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from tests.kernels.info_nce.bad import BAD
from tests.kernels.info_nce.naive import IGNORE, magnitudes, naive
from tests.kernels.spec import CAST, Case, Inputs, OpSpec, randn


def case(
    name: str,
    why: str,
    queries: int,
    keys: int | None = None,
    queue: int = 0,
    features: int = 6,
    scale: float = 1.0,
    terms: float = 16,
    integers: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """A ``keys`` of None is key=None. ``integers`` are the targets and labels; a function is given the generator."""

    def make(rng: torch.Generator) -> Inputs:
        made = {"query": scale * randn(rng, queries, features)}
        made["temperature"] = torch.tensor(0.7, dtype=torch.float64)
        if keys is not None:
            made["key"] = scale * randn(rng, keys, features)
        if queue:
            made["queue"] = scale * randn(rng, queue, features)
        for parameter, values in (integers or {}).items():
            made[parameter] = values(rng) if callable(values) else torch.tensor(values, dtype=torch.int64)
        return made

    call, plain = partial(cpl_kernels.info_nce, **options), partial(naive, **options)
    # The temperature's gradient adds up differences of similarities, each of the size sqrt(features), and
    # one for every query; they may cancel to 0. So may the other results, whose terms are single ones.
    floor = dict.fromkeys(("loss", "gradient of query", "gradient of key"), 0.1)
    floor["gradient of temperature"] = queries * features**0.5 / 2
    return Case(name, why, make, call, plain, terms=terms, floor=floor)


@dataclass(frozen=True)
class Move:
    """What all logits have in common, and how they are scaled; fp32 holds every one of them exactly.

    Attributes:
        common: the last feature of all vectors: their products share its square.
        step: of the other features, which are small multiples of it.
        temperature: a power of two.
    """

    common: float
    step: float
    temperature: float


# fp32 numbers of 1e8 are 8 apart. In fp16 1e4 is a number, and in bf16 9984 is, whose square fp32 holds as well.
MOVES = {
    "offset 0, T 1/64": Move(0.0, 1.0, 1 / 64),
    "offset 1e4, T 1": Move(1e2, 1.0, 1.0),
    "offset 1e8, T 1": Move(1e4, 4.0, 1.0),
}
# By row, for reduction="none": of either sign and any magnitude, and none.
WEIGHTS = (0.0, 1e3, -1.0, 3e-3, 0.5, -20.0, 1.0)


def weights_for(queries: int, options: dict[str, Any]) -> Tensor:
    if options.get("reduction") != "none":
        return torch.ones((), dtype=torch.float64)
    return torch.tensor(WEIGHTS * (queries // len(WEIGHTS) + 1), dtype=torch.float64)[:queries]


def weighted(loss: Any, weights: Tensor, **options: Any) -> Any:
    """``loss`` times the weights of its rows."""

    def call(**inputs: Any) -> Tensor:
        of_rows = loss(**inputs, **options)
        return of_rows * weights.to(of_rows)

    return call


def terms_of(weights: Tensor, options: dict[str, Any]) -> Any:
    def terms(inputs: Inputs, gradients: Any) -> Any:
        of_loss = {n: v for n, v in options.items() if n in ("symmetric", "reduction")}
        found = dict(magnitudes(inputs, [gradients[0] * weights], **of_loss))
        return {**found, "loss": found["loss"] * weights.abs()}

    return terms


def exact(
    name: str,
    move: Move,
    queries: int,
    keys: int | None = None,
    queue: int = 0,
    features: int = 4,
    integers: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """As ``case``, of vectors whose logits are exact: then so is every result, to a few eps of what it adds up.

    So gold is all that results are compared with, and torch's own error allows nothing.
    """

    def make(rng: torch.Generator) -> Inputs:
        def vectors(count: int) -> Tensor:
            drawn = move.step * torch.randint(-2, 3, (count, features), generator=rng).double()
            return torch.cat((drawn, torch.full((count, 1), move.common, dtype=torch.float64)), 1)

        made = {"query": vectors(queries), "temperature": torch.tensor(move.temperature, dtype=torch.float64)}
        if keys is not None:
            made["key"] = vectors(keys)
        if queue:
            made["queue"] = vectors(queue)
        for parameter, values in (integers or {}).items():
            made[parameter] = values(rng) if callable(values) else torch.tensor(values, dtype=torch.int64)
        return made

    weights = weights_for(queries, options)
    call = weighted(cpl_kernels.info_nce, weights, **options)

    def gold(**inputs: Any) -> Tensor:
        wide = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
        return weighted(naive, weights, **options, differences=True)(**wide).to(inputs["query"].dtype)

    return Case(
        name, "exact whatever logits have in common", make, call, gold, terms=terms_of(weights, options)
    )


ORDERS = 8  # of the features


def rounded(
    name: str,
    why: str,
    queries: int,
    keys: int | None,
    features: int,
    length: float | None,
    temperature: float,
    queue: int = 0,
    integers: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """As ``case``, of vectors whose logits are rounded, and which differ by their features' order.

    Args:
        length: the standard deviation of a feature, or None: unit vectors.
    """

    def vectors(rng: torch.Generator, count: int) -> Tensor:
        drawn = randn(rng, count, features)
        return F.normalize(drawn) if length is None else length * drawn

    def make(rng: torch.Generator) -> Inputs:
        made = {"query": vectors(rng, queries), "temperature": torch.tensor(temperature, dtype=torch.float64)}
        made |= {} if keys is None else {"key": vectors(rng, keys)}
        made |= {"queue": vectors(rng, queue)} if queue else {}
        return made | {n: torch.tensor(v, dtype=torch.int64) for n, v in (integers or {}).items()}

    weights = weights_for(queries, options)

    def in_order(seed: int) -> Any:
        order = torch.randperm(features, generator=torch.Generator().manual_seed(seed))

        def call(**inputs: Any) -> Tensor:
            mixed = {n: x[:, order] if x.dim() == 2 else x for n, x in inputs.items()}
            return weighted(naive, weights, **options)(**mixed)

        return call

    call, plain = (weighted(loss, weights, **options) for loss in (cpl_kernels.info_nce, naive))
    orders = tuple(in_order(seed) for seed in range(ORDERS))
    return Case(name, why, make, call, plain, terms=terms_of(weights, options), orders=orders)


def some(high: int, count: int) -> Any:
    """``count`` integers from 0 to ``high - 1``, about a sixth of them ignored."""

    def draw(rng: torch.Generator) -> Tensor:
        drawn = torch.randint(0, high, (count,), generator=rng)
        return torch.where(torch.rand(count, generator=rng) < 1 / 6, IGNORE, drawn)

    return draw


def _random(
    kind: str,
    queries: int,
    more: int,
    queue: int,
    reduction: str,
    symmetric: bool,
    features: int,
    move: Move | None,
) -> Case:
    options: dict[str, Any] = {"queue": queue, "features": features, "reduction": reduction}
    keys: int | None = queries + more
    if kind == "diagonal":
        keys = queries if symmetric else keys
        options["symmetric"] = symmetric
    elif kind == "targets":
        options["integers"] = {"targets": some(queries + more, queries)}
    elif kind == "labels":
        options["symmetric"] = symmetric and (reduction != "none" or more == 0)
        options["integers"] = {"query_labels": some(3, queries), "key_labels": some(3, queries + more)}
    else:  # SupCon
        keys, options["symmetric"] = None, symmetric
        options["integers"] = {"query_labels": some(3, queries)}
    if move is not None:
        return exact("random, exact", move, queries, keys, **options)
    return case("random", "any arrangement", queries, keys, **options)


SUPCON = [0, 1, 0, IGNORE, 1, 2, 0]

# Every form of the loss, and every way that a backend may take.
FORMS: dict[str, dict[str, Any]] = {
    "one way": {"queries": 5, "keys": 6},
    "queue, per row": {"queries": 5, "keys": 5, "queue": 4, "reduction": "none"},
    "targets, sum": {"queries": 5, "keys": 4, "integers": {"targets": [3, IGNORE, 0, 3, 1]}, "reduction": "sum"},
    "symmetric": {"queries": 5, "keys": 5, "symmetric": True},
    "symmetric with queue, per row": {
        "queries": 5, "keys": 5, "queue": 4, "symmetric": True, "reduction": "none",
    },
    "SimCLR": {"queries": 6, "integers": {"targets": [3, 4, 5, 0, 1, 2]}},
    "SimCLR with queue, per row": {
        "queries": 6, "queue": 3, "integers": {"targets": [3, 4, IGNORE, 0, 1, 2]}, "reduction": "none",
    },
    "SupCon": {"queries": 7, "integers": {"query_labels": SUPCON}},
    "SupCon symmetric with queue": {
        "queries": 7, "queue": 3, "integers": {"query_labels": SUPCON}, "symmetric": True,
    },
    "labels": {
        "queries": 3, "keys": 5, "integers": {"query_labels": [4, 9, IGNORE], "key_labels": [4, 4, IGNORE, 1, 4]},
    },
    "labels symmetric, sum": {
        "queries": 4, "keys": 5, "integers": {"query_labels": [4, 9, 1, 4], "key_labels": [4, 4, 8, 1, IGNORE]},
        "symmetric": True, "reduction": "sum",
    },
}  # fmt: skip
SIMCLR = {"targets": [3, 4, 5, 0, 1, 2]}
ROUNDED = (
    rounded("embeddings", "not normalised: logits in the thousands", 5, 6, 512, 3.0, 0.07),
    rounded("embeddings symmetric", "and both ways", 5, 5, 512, 3.0, 0.07, symmetric=True),
    rounded("embeddings SimCLR", "and by row", 6, None, 512, 3.0, 0.07, integers=SIMCLR, reduction="none"),
    rounded(
        "sharp", "unit vectors at the lowest temperature", 5, 5, 128, None, 0.01, queue=4, symmetric=True
    ),
    rounded("sharp SimCLR", "and weights", 6, None, 128, None, 0.01, integers=SIMCLR, reduction="none"),
    rounded("sharp per row", "and weights", 5, 6, 128, None, 0.01, reduction="none"),
)
EXACT = tuple(
    exact(f"{form}, {name}", move, **options)
    for form, options in FORMS.items()
    for name, move in MOVES.items()
)

SPEC = OpSpec(
    name="info_nce",
    cases=(
        case("CLIP one way", "the plain one", 5, 5),
        case("more keys", "further keys are negatives", 4, 7, reduction="sum"),
        case("CLIP per pair", "no reduction", 4, 4, symmetric=True, reduction="none"),
        case("MoCo", "more in the queue than keys", 3, 3, queue=9),
        case(
            "targets per row",
            "no reduction, one row left out",
            3,
            4,
            integers={"targets": [3, IGNORE, 0]},
            reduction="none",
        ),
        case("SimCLR", "the diagonal left out", 6, integers={"targets": [3, 4, 5, 0, 1, 2]}),
        case(
            "SupCon symmetric",
            "no reduction",
            7,
            integers={"query_labels": SUPCON},
            symmetric=True,
            reduction="none",
        ),
        case(
            "labels",
            "several positives, some with none",
            3,
            5,
            integers={"query_labels": [4, 9, IGNORE], "key_labels": [4, 4, IGNORE, 1, 4]},
        ),
        case(
            "labels with queue",
            "all sources of keys",
            3,
            4,
            queue=2,
            integers={"query_labels": [0, 1, 5], "key_labels": [0, 0, 1, 2]},
            reduction="none",
        ),
        case(
            "nobody has a positive",
            "the loss is 0, and its gradient",
            3,
            integers={"query_labels": [0, 1, 2]},
        ),
        case(
            "all ignored",
            "the loss is 0, and its gradient",
            2,
            3,
            integers={"targets": [IGNORE, IGNORE]},
            reduction="sum",
        ),
        case("one query", "itself its only key", 1, integers={"query_labels": [0]}),
        # A similarity near 10^4, summed in another order, errs by an ulp, which exp makes as much of the gradient.
        case("large similarities", "exp overflows without the maximum taken off", 4, 4, scale=30.0, terms=32),
        case("no features left over", "one feature", 4, 4, features=1),
        case("no queries", "a mean over nothing", 0, 5, integers={"targets": []}),
        *EXACT,
        *ROUNDED,
    ),
    small=(
        case("CLIP", "both directions", 5, 5, symmetric=True),
        case("symmetric with queue", "a queue enters one direction only", 3, 3, queue=4, symmetric=True),
        case("targets", "rows left out", 5, 4, integers={"targets": [3, IGNORE, 0, 3, 1]}),
        case(
            "SimCLR with queue",
            "the diagonal left out, and more keys",
            4,
            queue=3,
            integers={"targets": [IGNORE, 3, 0, 1]},
        ),
        case("SupCon", "several positives, the diagonal left out", 7, integers={"query_labels": SUPCON}),
        case(
            "labels symmetric",
            "several positives each way",
            3,
            5,
            integers={"query_labels": [4, 9, 1], "key_labels": [4, 4, 8, 1, IGNORE]},
            symmetric=True,
        ),
    ),
    large=case("large", "more rows than one tile of any backend takes", 150, 170, features=33),
    random=st.builds(
        _random,
        st.sampled_from(["diagonal", "targets", "labels", "SupCon"]),
        st.integers(2, 9),
        st.integers(0, 5),
        st.integers(0, 5),
        st.sampled_from(["mean", "sum", "none"]),
        st.booleans(),
        st.integers(1, 20),
        st.sampled_from([None, *MOVES.values()]),
    ),
    outputs={"loss": "rule"},
    narrow_factors={"triton": 4},  # rows of the matrix times unit vectors, whose sum is shorter than they
    differentiable=("query", "key", "temperature"),
    autocast={"query": CAST, "key": CAST, "queue": CAST},
    wide_result=True,
    bad=BAD,
)
