"""Contrastive losses of embeddings as modules, on cpl_kernels.info_nce."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cpl.losses.gather import gather
from cpl.losses.labels import integers
from cpl.losses.unit import unit_vectors
from cpl_kernels import checks, info_nce

REDUCTIONS = ("mean", "sum", "none")
_LARGEST_TEMPERATURE = 100.0  # cosines over it all look alike: nothing is learnt beyond


class _Contrastive(nn.Module):
    """The settings that the losses share.

    A learnable temperature is kept as ``logit_scale`` = log(1 / temperature), as CLIP does: it stays positive
    whatever the optimizer does. In training each call first puts the parameter back between its bounds, in place.
    CLIP's training code does that after each step. The gradient at a bound is not cut: the parameter can leave it.
    """

    def __init__(
        self,
        temperature: float,
        learnable: bool,
        normalize: bool,
        reduction: str,
        max_logit_scale: float | None,
    ) -> None:
        super().__init__()
        checks.positive("temperature", temperature)
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}"
            )
        if max_logit_scale is not None:
            checks.positive("max_logit_scale", max_logit_scale)
        self.normalize, self.reduction = normalize, reduction
        self.max_logit_scale = max_logit_scale
        self._temperature = float(temperature)
        least = 0.0 if max_logit_scale is None else 1 / max_logit_scale
        if learnable and least and not least * (1 - 1e-9) <= temperature <= _LARGEST_TEMPERATURE:
            raise ValueError(
                f"a learnable temperature must be from 1 / max_logit_scale = {least:g} to "
                f"{_LARGEST_TEMPERATURE:g}, got {temperature}. Give another max_logit_scale, or None for no bounds."
            )
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learnable else None

    @property
    def temperature(self) -> float | Tensor:
        """A number, or a tensor of shape [] with gradient where it is learnt."""
        parameter = self.logit_scale
        if parameter is None:
            return self._temperature
        scale: Tensor = parameter
        if self.max_logit_scale is not None:
            # The value of a clamp with the gradient of its input: a clamp's own is 0 beyond the bounds.
            scale = scale.detach().clamp(*self._bounds()) + (scale - scale.detach())
        return torch.exp(-scale.to(torch.promote_types(scale.dtype, torch.float32)))

    def _bounds(self) -> tuple[float, float]:
        """The least and the largest ``logit_scale``."""
        assert self.max_logit_scale is not None
        return -math.log(_LARGEST_TEMPERATURE), math.log(self.max_logit_scale)

    def _put_back(self) -> None:
        """Bring ``logit_scale`` between its bounds after the optimizer's step.

        Without it the parameter would run away while the gradient holds it at a bound, and take as long to come back.
        """
        scale = self.logit_scale
        if scale is None or self.max_logit_scale is None:
            return
        # torch.func allows no change to what a function captured; the temperature is bounded without this too.
        functional = (
            not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
        )
        if self.training and scale.requires_grad and torch.is_grad_enabled() and not functional:
            with torch.no_grad():
                scale.clamp_(*self._bounds())

    def _units(self, name: str, x: Tensor) -> Tensor:
        return unit_vectors(name, x) if self.normalize else x

    def extra_repr(self) -> str:
        learnt = "" if self.logit_scale is None else ", learnable"
        value = float(torch.as_tensor(self.temperature).detach())
        return f"temperature={value:.4g}{learnt}, normalize={self.normalize}, reduction={self.reduction!r}"


class InfoNCELoss(_Contrastive):
    """``loss(query [B, D], key [M, D])``: key i is the positive of query i, all other keys are negatives.

        loss_i = -log( exp(<q_i, k_i> / t) / sum_j exp(<q_i, k_j> / t) ),  j over keys and queue

    With ``symmetric=True`` averaged with the same of each key against all queries: CLIP's loss. With
    ``targets`` [B] int64 the positive of query i is key targets[i].

    Args:
        temperature: t.
        symmetric: both directions; needs B = M.
        learnable_temperature: t is a parameter, kept as ``logit_scale`` = log(1 / t).
        normalize: give every vector unit length first, so that products are cosines.
        reduction: "mean", "sum" or "none".
        ignore_index: a target that says "this query does not count".
        max_logit_scale: the largest 1 / t that a learnable temperature reaches, CLIP's 100 (t = 0.01). The smallest
            is 0.01. The parameter is put back between log(0.01) and log(max_logit_scale) by each call in training,
            in place, and its gradient is not cut there. None: no bounds; where 1 / t overflows, an error.
        gather_distributed: compare each process's queries with the keys of all processes of torch.distributed's default
            group (and, if symmetric, its keys with all queries). The loss is that of the process's own rows,
            and gradients go back to the process that made a vector: with the gradients of the weights averaged,
            as DistributedDataParallel does, a step is that of one process with the whole batch. Every
            process needs the same B and M and as many calls; targets count the process's own keys.

    The call's ``queue`` [Q, D] (MoCo): further negatives of the queries, without gradient. The vectors are
    float32, bfloat16, float16 or float64; the loss is float32, or float64. Unit length is given in float32 or
    better, and what is compared then has that dtype (under autocast its own). A vector of zeros stays zeros
    and gets no gradient. ``targets`` are integers of any width, not bool.

    Raises:
        ValueError, TypeError: a setting, shape or dtype that cannot be, by name; see cpl_kernels.info_nce.
        RuntimeError: gather_distributed without a process group.

    Source: van den Oord et al., arXiv 1807.03748, equation 4; Radford et al., arXiv 2103.00020, figure 3; He et
    al., arXiv 1911.05722.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        ignore_index: int = -100,
        gather_distributed: bool = False,
        max_logit_scale: float | None = 100.0,
    ) -> None:
        super().__init__(temperature, learnable_temperature, normalize, reduction, max_logit_scale)
        checks.int64("ignore_index", ignore_index)
        self.symmetric, self.ignore_index = symmetric, ignore_index
        self.gather_distributed = gather_distributed

    def forward(
        self, query: Tensor, key: Tensor, targets: Tensor | None = None, queue: Tensor | None = None
    ) -> Tensor:
        self._put_back()
        checks.tensor("query", query)
        checks.rank("query", query, "[B, D]")
        query, key = self._units("query", query), self._units("key", key)
        queue = None if queue is None else self._units("queue", queue.detach())
        targets = None if targets is None else integers("targets", targets, len(query), "[B]")
        if not self.gather_distributed:
            return self._loss(query, key, targets, queue, self.symmetric)
        keys, first = gather(key)
        loss = self._loss(query, keys, self._targets(query, key, targets, first), queue)
        if not self.symmetric:
            return loss
        queries, first = gather(query)
        return (loss + self._loss(key, queries, self._targets(key, query, targets, first))) / 2

    def _loss(
        self,
        query: Tensor,
        key: Tensor,
        targets: Tensor | None,
        queue: Tensor | None = None,
        symmetric: bool = False,
    ) -> Tensor:
        return info_nce(
            query,
            key,
            targets,
            temperature=self.temperature,
            symmetric=symmetric,
            queue=queue,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def _targets(self, query: Tensor, key: Tensor, targets: Tensor | None, first: int) -> Tensor:
        """The places of the queries' positives among the keys of all processes, whose own begin at ``first``."""
        if self.symmetric and (targets is not None or len(query) != len(key)):
            raise ValueError(
                "symmetric=True goes without targets, for as many queries as keys, got "
                f"{len(query)} and {len(key)}{'' if targets is None else ' and targets'}"
            )
        if targets is None:
            if len(key) < len(query):
                raise ValueError(
                    f"without targets key i is the positive of query i, so M must be at least B = {len(query)}, "
                    f"got M = {len(key)}; give targets"
                )
            return first + torch.arange(len(query), device=query.device)
        counts = targets != self.ignore_index
        if targets.is_cpu:  # on a GPU a look would be a sync
            bad = targets[counts & ((targets < 0) | (targets >= len(key)))]
            if len(bad):
                raise ValueError(f"targets must be from 0 to M-1 = {len(key) - 1}, got {int(bad[0])}")
        return torch.where(counts, targets + first, targets)

    def extra_repr(self) -> str:
        gathered = ", gather_distributed=True" if self.gather_distributed else ""
        return f"{super().extra_repr()}, symmetric={self.symmetric}{gathered}"


class NTXentLoss(_Contrastive):
    """``loss(out0 [B, D], out1 [B, D])``, two views of the same B images: SimCLR's loss.

    Every one of the 2B vectors is compared with the 2B - 1 others; its positive is the other view of its image. With
    reduction="none" the losses are those of out0, then those of out1.

    Args:
        temperature: 0.5 is lightly's default; pytorch-metric-learning's is 0.07.
        learnable_temperature, normalize, reduction, max_logit_scale: as InfoNCELoss has them.

    Raises:
        ValueError: views of different shapes, or not [B, D].

    Source: Chen et al., "SimCLR", arXiv 2002.05709, equation 1.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        learnable_temperature: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        max_logit_scale: float | None = 100.0,
    ) -> None:
        super().__init__(temperature, learnable_temperature, normalize, reduction, max_logit_scale)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        self._put_back()
        if out0.shape != out1.shape or out0.dim() != 2:
            raise ValueError(
                f"out0 and out1 must both be [B, D], two views of the same images, "
                f"got {tuple(out0.shape)} and {tuple(out1.shape)}"
            )
        place = torch.arange(2 * len(out0), device=out0.device)
        return info_nce(
            torch.cat((self._units("out0", out0), self._units("out1", out1))),
            targets=place.roll(len(out0)),
            temperature=self.temperature,
            reduction=self.reduction,
        )


class SupConLoss(_Contrastive):
    """``loss(embeddings [B, D], labels [B])``: all vectors of a label attract each other. The L_out form.

        loss_i = log sum_{a != i} exp(<z_i, z_a> / t) - mean over the others p with i's label of <z_i, z_p> / t

    averaged over the vectors that have another one of their label; if none has, it is 0.

    The call's arguments:
        embeddings: [B, D], or [B, V, D]: V views of B images, as the authors' code takes them. Without ``labels``
            each image then is a class of its own (SimCLR for V = 2).
        labels: [B], integers.
        ref_emb: [M, D] with ``ref_labels`` [M]: compare embeddings with these instead of with each other.

    Args:
        temperature, learnable_temperature, normalize, reduction, max_logit_scale: as InfoNCELoss has them.
        ignore_index: a label that says "a negative for others, and no more".

    Raises:
        ValueError: no labels and no views; ref_emb without ref_labels or with views; shapes that do not fit.

    Source: Khosla et al., "SupCon", arXiv 2004.11362, equation 2.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        learnable_temperature: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        ignore_index: int = -100,
        max_logit_scale: float | None = 100.0,
    ) -> None:
        super().__init__(temperature, learnable_temperature, normalize, reduction, max_logit_scale)
        checks.int64("ignore_index", ignore_index)
        self.ignore_index = ignore_index

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        self._put_back()
        if (ref_emb is None) != (ref_labels is None):
            raise ValueError("ref_emb and ref_labels come together: give both or neither")
        if embeddings.dim() not in (2, 3):
            raise ValueError(f"embeddings must be [B, D] or [B, V, D], got shape {tuple(embeddings.shape)}")
        if labels is None and embeddings.dim() == 2:
            raise ValueError("embeddings [B, D] need labels [B]; for two views stack them: [B, 2, D]")
        if embeddings.dim() == 3 and ref_emb is not None:
            raise ValueError("views [B, V, D] are compared with each other: leave ref_emb out")
        images = embeddings.shape[0]
        if labels is None:
            labels = torch.arange(images, device=embeddings.device)
        labels = integers("labels", labels, images, "[B]")
        if embeddings.dim() == 3:
            labels, embeddings = labels.repeat_interleave(embeddings.shape[1]), embeddings.flatten(0, 1)
        if ref_emb is not None and ref_labels is not None:
            ref_labels = integers("ref_labels", ref_labels, len(ref_emb), "[M]")
        return info_nce(
            self._units("embeddings", embeddings),
            None if ref_emb is None else self._units("ref_emb", ref_emb),
            query_labels=labels,
            key_labels=ref_labels,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
