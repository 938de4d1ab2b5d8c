"""What is measured: cases, and for each the implementations of a step, ours first."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cpl_kernels
from benchmarks.harness import OURS
from benchmarks.plain import Block, PlainRestorer
from cpl.models import MODELS, create_model
from cpl.nn import TransformerBlock, set_keep

LEARNING_RATE = 1e-6  # the weights hardly move while they are measured
PLAIN = "plain"  # eager: the definition
KINDS = ("eager", "blocks", "whole", "profile")
COMPILED = {"blocks": "torch.compile of its blocks", "whole": "torch.compile"}
SPEC = re.compile(
    rf"({'|'.join(MODELS)}):(\d+)x(\d+)x(\d+):(float32|bfloat16):(train|inference)(?::({'|'.join(KINDS)}))?"
)
RECOMPILES = 64  # a network's blocks are one code for eight shapes, where torch gives up


@dataclass(frozen=True)
class Case:
    """Written MODEL:BxHxW:DTYPE:train|inference[:KIND].

    Attributes:
        kind: "eager": what needs no compiler. "blocks", "whole": ours and plain once more, and plain under
            torch.compile, each block on its own (half a minute on a GPU's machine) or the network at once (minutes).
            "profile": no time of a step, but where its time goes.
    """

    model: str
    batch: int
    height: int
    width: int
    dtype: str
    mode: str
    kind: str = "eager"

    @classmethod
    def parse(cls, spec: str) -> Case:
        found = SPEC.fullmatch(spec)
        if found is None:
            raise ValueError(
                f"{spec!r} is no case; write MODEL:BxHxW:float32|bfloat16:train|inference[:{'|'.join(KINDS)}], "
                f"MODEL one of {', '.join(MODELS)}"
            )
        model, batch, height, width, dtype, mode, kind = found.groups()
        return cls(model, int(batch), int(height), int(width), dtype, mode, kind or "eager")

    def __str__(self) -> str:
        size = f"{self.batch}x{self.height}x{self.width}"
        kind = "" if self.kind == "eager" else f":{self.kind}"
        return f"{self.model}:{size}:{self.dtype}:{self.mode}{kind}"


# What matters most first: a run may be short of time.
CUDA = (
    "cplir:8x128x128:bfloat16:train",
    "cplir:8x128x128:bfloat16:train:blocks",
    "cplir:8x128x128:float32:train",
    "cplir:1x1024x1024:bfloat16:inference",
    "cplir-small:8x128x128:bfloat16:train",
    "cplir:8x128x128:bfloat16:train:whole",
    "cplir:8x128x128:bfloat16:inference",
    "cplir:1x1024x1024:float32:inference",
    "cplir-small:8x128x128:float32:train",
    "cplir:1x512x512:bfloat16:inference",
    "cplir:8x128x128:float32:inference",
    "cplir-small:8x128x128:bfloat16:inference",
    "cplir-small:8x128x128:float32:inference",
    "cplir:1x512x512:float32:inference",
    "cplir:8x128x128:bfloat16:inference:whole",
    "cplir:8x128x128:float32:train:whole",
)
CPU = (
    "cplir:1x128x128:float32:train:whole",
    "cplir:1x128x128:float32:inference:whole",
    "cplir:1x128x128:float32:train",
    "cplir:1x128x128:float32:inference",
    "cplir:1x128x128:bfloat16:train",
    "cplir-small:2x128x128:float32:train",
    "cplir-small:2x128x128:float32:inference",
    "cplir:1x256x256:float32:train",
    "cplir:1x256x256:float32:inference",
    "cplir-small:2x256x256:float32:train",
    "cplir-small:2x256x256:float32:inference",
    "cplir-small:2x128x128:float32:train:whole",
    "cplir-small:2x128x128:float32:inference:whole",
)
DEFAULT = {"cuda": CUDA, "cpu": CPU}


@dataclass(frozen=True)
class Variant:
    """One implementation of a step.

    Attributes:
        backend: of ours: a name, or "" for the defaults.
        compiled: by torch.compile: "whole", its "blocks" (each on its own), or "".
        checkpointed: each block's forward is computed again in the backward.
        keep: of ours: what a block keeps for the backward, see TransformerBlock.
        graph: replayed as a CUDA graph.
    """

    plain: bool = False
    backend: str = ""
    compiled: str = ""
    checkpointed: bool = False
    keep: str = "all"
    graph: bool = False


def variants(case: Case, device: str, compile_ours: bool = False) -> dict[str, Variant]:
    """By name; the first is what the others' ratios are to."""
    cuda, train = device == "cuda", case.mode == "train"
    best, plain = f"{OURS} (default)", PLAIN
    found = {best: Variant(), plain: Variant(plain=True)}
    if case.kind in COMPILED:
        compiled = COMPILED[case.kind]
        found[f"{plain}, {compiled}"] = Variant(plain=True, compiled=case.kind)
        if compile_ours:
            found[f"{best}, {compiled}"] = Variant(compiled=case.kind)
        return found
    if case.kind == "profile":
        return found
    if not cuda:  # on a GPU it is slower than plain, whose convolutions are not widened to fp32
        found[f"{OURS} (reference)"] = Variant(backend="reference")
    if train:
        found[f"{OURS}, keep=products"] = Variant(keep="products")
        found[f"{OURS}, keep=input"] = Variant(keep="input")
        found[f"{OURS}, checkpoint of its blocks"] = Variant(checkpointed=True)
        found[f"{plain}, checkpoint of its blocks"] = Variant(plain=True, checkpointed=True)
    if cuda:
        found[f"{best}, CUDA graph"] = Variant(graph=True)
        found[f"{plain}, CUDA graph"] = Variant(plain=True, graph=True)
    return found


@dataclass
class Step:
    """One implementation with weights, images and an optimizer of its own; ``run`` is one step."""

    case: Case
    variant: Variant
    device: torch.device
    weights: dict[str, Tensor]
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        case, variant = self.case, self.variant
        network = empty(case.model, variant.plain)
        # Copies, so that no implementation trains another's weights.
        network.load_state_dict({name: value.clone() for name, value in self.weights.items()}, assign=True)
        network.train(case.mode == "train")
        numbers = torch.Generator().manual_seed(0)
        shape = (case.batch, 3, case.height, case.width)
        self.degraded, self.target = (torch.rand(shape, generator=numbers).to(self.device) for _ in range(2))
        # Only under a graph must the step count be a tensor that the GPU advances.
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=LEARNING_RATE, fused=True, capturable=variant.graph
        )
        for part in network.modules():
            if variant.checkpointed and isinstance(part, Block):
                part.checkpointed = True
            if variant.checkpointed and isinstance(part, TransformerBlock):
                part.forward = partial(checkpoint, part.forward, use_reentrant=False)  # type: ignore[method-assign]
            if variant.compiled == "blocks" and isinstance(part, (Block, TransformerBlock)):
                part.compile(dynamic=False)
        if not variant.plain:
            set_keep(network, variant.keep)
        if variant.compiled:
            torch._dynamo.config.recompile_limit = RECOMPILES
        self.network = network
        if variant.compiled == "whole":
            self.network.compile(dynamic=False)

    @contextlib.contextmanager
    def _as_measured(self) -> Iterator[None]:
        narrow = self.case.dtype == "bfloat16"
        with (
            cpl_kernels.use_backend(self.variant.backend or None),
            torch.autocast(self.device.type, torch.bfloat16, enabled=narrow),
        ):
            yield

    def restored(self) -> Tensor:
        with torch.no_grad(), self._as_measured():
            return self.network(self.degraded)

    def backward(self) -> Tensor:
        with self._as_measured():
            loss = F.l1_loss(self.network(self.degraded), self.target)
        loss.backward()
        return loss.detach()

    def train(self) -> Tensor:
        loss = self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    @property
    def run(self) -> Callable[[], Tensor]:
        return self.train if self.case.mode == "train" else self.restored

    def look(self) -> dict[str, float]:
        """What every implementation must agree on, before the first update: the loss, and the gradient's norm."""
        if self.case.mode == "inference":
            return {"loss": float(F.l1_loss(self.restored().float(), self.target))}
        loss = float(self.backward())
        gradients: list[Any] = [p.grad for p in self.network.parameters()]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self.optimizer.zero_grad()
        return {"loss": loss, "gradient_norm": norm}


def empty(model: str, plain: bool) -> nn.Module:
    """A network whose weights are yet to come."""
    with torch.device("meta"):
        return PlainRestorer(MODELS[model]) if plain else create_model(model)


def fresh_weights(model: str, device: torch.device) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with device:
        return create_model(model).state_dict()
