"""info_nce as its docstring says it, one pair at a time; and the magnitudes of what it adds up."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.kernels.spec import Inputs

IGNORE = -100
# In place of a probability that is subnormal in fp32 a kernel may have 0: as much as an eps of this.
SUBNORMAL = torch.finfo(torch.float32).smallest_normal / torch.finfo(torch.float32).eps


def positive_pairs(
    queries: int, keys: int, self_: bool, targets: Tensor | None, labels: Tensor | None, others: Tensor | None
) -> set[tuple[int, int]]:
    if targets is not None:
        return {(i, int(t)) for i, t in enumerate(targets) if t != IGNORE}
    if labels is None:
        return {(i, i) for i in range(queries)}
    others = labels if others is None else others
    pairs = itertools.product(range(queries), range(keys))
    return {(i, j) for i, j in pairs if labels[i] == others[j] != IGNORE and not (self_ and i == j)}


def direction(
    query: Tensor,
    keys: Tensor,
    more: Tensor | None,
    positive: list[list[int]],
    t: Tensor,
    self_: bool,
    differences: bool,
) -> tuple[list[Tensor], int]:
    """Per-row losses and how many rows count, one pair at a time, from the formula of the docstring.

    log_softmax takes off the largest before it rounds anything, which logsumexp does not.
    """
    losses, rows = [], 0
    for i, positives in enumerate(positive):
        others = [j for j in range(len(keys)) if not (self_ and j == i)]
        compared = [*(keys[j] for j in others), *([] if more is None else more)]
        if not positives:
            losses.append(0 * (query[i].sum() + keys.sum() + t))
            continue
        rows += 1
        products = torch.stack([query[i] @ key for key in compared])
        s = (products - products.detach().max() if differences else products) / t
        losses.append(-s.log_softmax(0)[[others.index(j) for j in positives]].mean())
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
    differences: bool = False,
) -> Tensor:
    """``differences``: a row's largest product is taken off first. No result depends on it but by rounding."""
    keys, self_ = (query, True) if key is None else (key, False)
    hits = positive_pairs(len(query), len(keys), self_, targets, query_labels, key_labels)

    def reduce(losses: list[Tensor], rows: int) -> Tensor:
        stacked = torch.stack(losses) if losses else 0 * (query.sum() + keys.sum() + temperature).expand(0)
        if reduction == "none":
            return stacked
        return stacked.sum() if reduction == "sum" else stacked.sum() / max(rows, 1)

    of_row = [[j for j in range(len(keys)) if (i, j) in hits] for i in range(len(query))]
    loss = reduce(*direction(query, keys, queue, of_row, temperature, self_, differences))
    if symmetric:
        of_column = [[i for i in range(len(query)) if (i, j) in hits] for j in range(len(keys))]
        loss = (loss + reduce(*direction(keys, query, None, of_column, temperature, self_, differences))) / 2
    return loss


def magnitudes(
    inputs: Inputs, gradients: Sequence[Tensor], *, symmetric: bool = False, reduction: str = "mean"
) -> Mapping[str, Tensor]:
    """What is added up to form each result, by magnitude, where no logit is rounded.

    A probability is exp(d), with d what the logit lacks of the largest, and |d| * eps of it is rounding. Of the sum z
    of such, at least 1, the logarithm errs by eps. Nothing of what the logits have in common stands here: it has to
    cancel before anything is rounded.
    """
    query, t = inputs["query"], inputs["temperature"]
    key, queue = inputs.get("key"), inputs.get("queue")
    keys = query if key is None else key
    queries, count = len(query), len(keys)
    hits = positive_pairs(
        queries, count, key is None, *(inputs.get(n) for n in ("targets", "query_labels", "key_labels"))
    )
    positive = torch.zeros(queries, count, dtype=torch.float64)
    for pair in hits:
        positive[pair] = 1
    compared = torch.ones(queries, count, dtype=torch.bool)
    if key is None:
        compared.fill_diagonal_(False)
    products, more = query @ keys.T, query.new_zeros(0, query.shape[1]) if queue is None else queue
    every = torch.cat((products.masked_fill(~compared, -torch.inf), query @ more.T), 1)

    def side(all_products: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row: what its loss adds up, the magnitude of its gradient's elements, and of these times d."""
        number = wanted.sum(1, keepdim=True)
        counts = number > 0
        d = torch.where(counts, (all_products - all_products.amax(1, keepdim=True)) / t, -torch.inf)
        p, lacks = d.exp(), -d.nan_to_num(neginf=0.0)
        wanted = torch.cat((wanted, wanted.new_zeros(len(wanted), d.shape[1] - wanted.shape[1])), 1)
        wanted = wanted / number.clamp(min=1)
        total = p.sum(1, keepdim=True)
        loss = torch.where(counts, 1 + total.log() + (wanted * lacks).sum(1, keepdim=True), 0)[:, 0]
        share = gradients[0] / (counts.sum().clamp(min=1) if reduction == "mean" else 1)
        share = share.abs().reshape(-1, 1) * (0.5 if symmetric else 1)
        g = torch.where(counts, share * ((p * (1 + lacks) + SUBNORMAL) / total + wanted), 0)
        if reduction != "none":
            loss = loss.sum() / (counts.sum().clamp(min=1) if reduction == "mean" else 1)
        return loss, g, (g * lacks).sum()

    loss, g, dt = side(every, positive)
    g, of_queue = g[:, :count], g[:, count:]
    if symmetric:
        of_columns = side(every[:, :count].T, positive.T)
        loss, g, dt = (loss + of_columns[0]) / 2, g + of_columns[1].T, dt + of_columns[2]
    of_query, of_key = (g @ keys.abs() + of_queue @ more.abs()) / t, g.T @ query.abs() / t
    if key is None:
        of_query = of_query + of_key
    found = {"loss": loss, "gradient of query": of_query, "gradient of temperature": dt / t}
    return found if key is None else {**found, "gradient of key": of_key}
