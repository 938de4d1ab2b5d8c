"""What the matrix needs to know of info_nce."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.info_nce.bad import BAD
from tests.kernels.spec import CAST, Case, Inputs, OpSpec, randn

IGNORE = -100


def direction(
    query: Tensor, keys: Tensor, more: Tensor | None, positive: list[list[int]], t: Tensor, self_: bool
) -> tuple[list[Tensor], int]:
    """Per-row losses and how many rows count, one pair at a time, from the formula of the docstring."""
    losses, rows = [], 0
    for i, positives in enumerate(positive):
        s = torch.stack([query[i] @ key / t for key in keys]) if len(keys) else query.new_zeros(0)
        compared = [s[j] for j in range(len(keys)) if not (self_ and j == i)]
        compared += [] if more is None else [query[i] @ key / t for key in more]
        if not positives:
            losses.append(0 * (query[i].sum() + keys.sum() + t))
            continue
        rows += 1
        mean = torch.stack([s[j] for j in positives]).mean()
        losses.append(torch.logsumexp(torch.stack(compared), 0) - mean)
    return losses, rows


def naive(
    query: Tensor,
    temperature: Tensor,
    key: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    symmetric: bool = False,
    queue: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    keys, self_ = (query, True) if key is None else (key, False)
    pairs = list(itertools.product(range(len(query)), range(len(keys))))
    if targets is not None:
        hits = {(i, int(t)) for i, t in enumerate(targets) if t != IGNORE}
    elif query_labels is not None:
        other = query_labels if key_labels is None else key_labels
        hits = {(i, j) for i, j in pairs if query_labels[i] == other[j] != IGNORE and not (self_ and i == j)}
    else:
        hits = {(i, i) for i in range(len(query))}

    def reduce(losses: list[Tensor], rows: int) -> Tensor:
        stacked = torch.stack(losses) if losses else 0 * (query.sum() + keys.sum() + temperature).expand(0)
        if reduction == "none":
            return stacked
        return stacked.sum() if reduction == "sum" else stacked.sum() / max(rows, 1)

    of_row = [[j for j in range(len(keys)) if (i, j) in hits] for i in range(len(query))]
    loss = reduce(*direction(query, keys, queue, of_row, temperature, self_))
    if symmetric:
        of_column = [[i for i in range(len(query)) if (i, j) in hits] for j in range(len(keys))]
        loss = (loss + reduce(*direction(keys, query, None, of_column, temperature, self_))) / 2
    return loss


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


def some(high: int, count: int) -> Any:
    """``count`` integers from 0 to ``high - 1``, about a sixth of them ignored."""

    def draw(rng: torch.Generator) -> Tensor:
        drawn = torch.randint(0, high, (count,), generator=rng)
        return torch.where(torch.rand(count, generator=rng) < 1 / 6, IGNORE, drawn)

    return draw


def _random(
    kind: str, queries: int, more: int, queue: int, reduction: str, symmetric: bool, features: int
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
    return case("random", "any arrangement", queries, keys, **options)


SUPCON = [0, 1, 0, IGNORE, 1, 2, 0]

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
    ),
    outputs={"loss": "rule"},
    narrow_factors={"triton": 4},  # rows of the matrix times unit vectors, whose sum is shorter than they
    differentiable=("query", "key", "temperature"),
    autocast={"query": CAST, "key": CAST, "queue": CAST},
    wide_result=True,
    bad=BAD,
)
