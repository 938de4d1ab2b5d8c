"""Which prompts a network's routers choose for an image, read while it restores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cpl.errors import CplError
from cpl.models.config import LEVELS
from cpl.models.restorer import Restorer
from cpl_kernels import route_topk

LEVEL_NAMES = {3: "an eighth of the size, first", 2: "a quarter of the size", 1: "half of the size, last"}


@dataclass(frozen=True)
class Choice:
    """What the router of one level chose for one image.

    Attributes:
        level: 1, 2 or 3; 3 is an eighth of the image's size and is decided first.
        shares: the softmax over all N prompts; they sum to 1.
        chosen: the k prompts that were taken, the most likely first.
        weights: what each of them is multiplied with.
    """

    level: int
    shares: tuple[float, ...]
    chosen: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass
class Routing:
    """The router logits of every image that a network restored while it was watched, by level."""

    top_k: int
    normalize: str
    logits: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, level: int, logits: Tensor, used: Tensor) -> None:
        """Of the router's logits [B, N] and those that were used, the latter."""
        self.logits.setdefault(level, []).append(used.detach().cpu())

    def choices(self) -> list[list[Choice]]:
        """For each image in turn, one choice a level, levels 1 to 3; empty if nothing was restored."""
        levels = [_choices(level, torch.cat(self.logits[level]), self) for level in sorted(self.logits)]
        return [list(image) for image in zip(*levels, strict=True)]


@contextlib.contextmanager
def watch_routing(model: nn.Module) -> Iterator[Routing]:
    """Notes what the routers choose for every image that ``model`` restores inside the block.

    It works however the image is restored, at once or window by window. Wrong prompts, which a negative gets,
    are not noted. Nothing is computed anew, so what is noted is what was used.

    Args:
        model: a network of :func:`cpl.create_model` with prompts.

    Raises:
        CplError: the network has no prompts.
        RuntimeError: it is being watched already.
    """
    network = with_prompts(model)
    modules = [getattr(network, f"prompt{level}") for level in LEVELS]
    routing = Routing(network.config.picks, network.config.normalize)
    if any(module.watcher is not None for module in modules):
        raise RuntimeError("this network's routing is being watched already")
    for module in modules:
        module.watcher = routing.add
    try:
        yield routing
    finally:
        for module in modules:
            module.watcher = None


@contextlib.contextmanager
def force_prompts(
    model: nn.Module, prompts: Tensor | Sequence[int] | int, levels: Sequence[int] = LEVELS
) -> Iterator[None]:
    """Inside the block, images get the prompts given, with a weight of 1, whatever the routers say.

    With the true degradation's prompt that is an oracle, which bounds what a router can bring; with another one it
    shows what a wrong choice costs. Wrong prompts for negatives are drawn from the others.

    Args:
        model: a network of :func:`cpl.create_model` with prompts.
        prompts: the index of one for all images, or of one for each image of every batch.
        levels: of the decoder, where they hold; the routers choose at the others.

    Raises:
        CplError: the network has no prompts, or takes several for an image.
        ValueError: an index beyond the prompts, or an unknown level.
        RuntimeError: its prompts are being forced already.
    """
    network = with_prompts(model)
    config = network.config
    if config.picks != 1:
        raise CplError(
            f"{network.architecture} takes {config.picks} prompts for an image, so one cannot be forced; "
            "use a network with top_k=1"
        )
    indices = torch.as_tensor(prompts).reshape(-1)
    if indices.dtype not in (torch.int64, torch.int32) or not len(indices):
        raise ValueError(f"prompts must be indices of prompts, got {prompts!r}")
    if not 0 <= int(indices.min()) <= int(indices.max()) < config.num_prompts:
        raise ValueError(f"prompts must be from 0 to {config.num_prompts - 1}, got {prompts!r}")
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        raise ValueError(f"levels must be of {LEVELS}, got {unknown[0]!r}")
    modules = [getattr(network, f"prompt{level}") for level in levels]
    if any(module.forced is not None for module in modules):
        raise RuntimeError("this network's prompts are being forced already")
    for module in modules:
        module.forced = indices.long()
    try:
        yield
    finally:
        for module in modules:
            module.forced = None


def with_prompts(model: nn.Module) -> Restorer:
    """``model``, if it is one whose prompts can be looked at.

    Raises:
        CplError: it has no prompts, or is not of :func:`cpl.create_model`.
    """
    if not isinstance(model, Restorer):
        raise CplError(
            f"a {type(model).__name__} has no prompts to look at; give a network of cpl.create_model"
        )
    if not model.config.num_prompts:
        raise CplError(
            f"{model.architecture} has no prompts, so there is no choice to look at; give a cplir or promptir model"
        )
    return model


def _choices(level: int, logits: Tensor, routing: Routing) -> list[Choice]:
    weights, chosen = route_topk(logits, routing.top_k, routing.normalize)
    return [
        Choice(level, tuple(shares), tuple(indices), tuple(taken))
        for shares, indices, taken in zip(
            logits.double().softmax(-1).tolist(), chosen.tolist(), weights.tolist(), strict=True
        )
    ]


def information(counts: Tensor) -> float | None:
    """What the choice of a prompt tells of the task, as a part of what it could tell at most: 0 nothing, 1 all.

    The mutual information of the two, less what so few images show by chance, over the entropy of the tasks, or of as
    many equally likely prompts as there are if that is less. None where there is nothing to tell.

    Args:
        counts: [T, N], how many images of each task got each prompt.

    Source: Miller, "Note on the bias of information estimates", 1955, for what is taken off.
    """
    used = [int((counts.sum(dim) > 0).sum()) for dim in (1, 0)]
    most = min(mutual_information(torch.diag(counts.sum(1))), math.log2(counts.shape[1]))
    if not most:
        return None
    by_chance = (used[0] - 1) * (used[1] - 1) / (2 * math.log(2) * float(counts.sum()))
    return min(1.0, max(0.0, mutual_information(counts) - by_chance) / most)


def mutual_information(counts: Tensor) -> float:
    """Of two things, in bits, from how often each pair was seen: [T, N], at least one of them.

    Of few counts it is too high, by about (T - 1) (N - 1) / (2 ln 2) over their number.
    """
    joint = counts.double() / counts.sum()
    alone = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / alone[seen]).log2()).sum())
