"""What is compared: networks that differ in their prompts alone, and each task by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ablation.data import TASKS
from benchmarks.ablation.told import add_told
from cpl.models import MODELS, Restorer, create_model

SIZE = "cplir-tiny"  # of all arms


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        about: what it is, for the table.
        model: overrides of the network; ``top_k`` None: dense prompts, ``num_prompts`` 0: none.
        cpr: arguments of ContrastivePromptRegularization, or None for L1 alone.
        routing: arguments of RoutingLoss, or None.
        oracle: each image gets the prompt of its true task.
        told: every block is told each image's true task (benchmarks/ablation/told.py).
        teacher: in this first part of the run each image gets the prompt of its true task; the router learns from the
            labels, and chooses when it is measured.
        only: the one task that is trained, on as many images of it: a fifth of every batch.
        pixel: the loss, of PIXEL_LOSSES.
        router_rate: the learning rate of routers and prompts, over that of the rest.
    """

    about: str
    model: Mapping[str, Any] = field(default_factory=dict)
    cpr: Mapping[str, Any] | None = None
    routing: Mapping[str, float] | None = None
    oracle: bool = False
    told: bool = False
    teacher: float = 0.0
    only: str | None = None
    pixel: str = "l1"
    router_rate: float = 1.0

    @property
    def needs_task(self) -> bool:
        """Whether it can restore images only whose task is known."""
        return self.oracle or self.told

    def network(self) -> Restorer:
        """With fresh weights."""
        network = self._network()
        if self.told:
            add_told(network, len(TASKS))
        return network

    def _network(self) -> Restorer:
        tiny = MODELS[SIZE].to_dict()
        size = {
            name: tiny[name] for name in ("dim", "num_blocks", "num_refinement_blocks", "prompt_channels")
        }
        if self.model.get("num_prompts") == 0:
            return create_model("restormer", **size)
        if "top_k" in self.model and self.model["top_k"] is None:
            return create_model("promptir", **size)
        return create_model(SIZE, **self.model)


# Without ImageNet's weights; frozen VGG16 layers of a quarter of the width, drawn at random.
_CPR = {"features": "random", "weight": 1e-3}
_WHOLE = {"normalize": "straight_through"}

ARMS: Mapping[str, Arm] = {
    "none": Arm("no prompts (Restormer, half the parameters)", {"num_prompts": 0}),
    "one": Arm("one prompt for all, at weight 1: SPM's network, and nothing to choose", {**_WHOLE, "num_prompts": 1}),
    "dense": Arm("dense prompts (PromptIR)", {"top_k": None}),
    "sparse": Arm("one of five prompts, as published (CPL's SPM)"),
    "oracle": Arm("the true task's prompt, at weight 1", _WHOLE, oracle=True),
    "cpr subtractive": Arm("SPM + CPR, subtractive", cpr={**_CPR, "form": "subtractive"}),
    "cpr ratio": Arm("SPM + CPR, ratio", cpr={**_CPR, "form": "ratio"}),
    "cpr infonce": Arm("SPM + CPR, infonce", cpr={**_CPR, "form": "infonce"}),
    "straight through": Arm("SPM, the chosen prompt at weight 1", _WHOLE),
    "information": Arm("so, + information 0.01", _WHOLE, routing={"information": 0.01}),
    "balance": Arm("so, + balance 0.01", _WHOLE, routing={"balance": 0.01}),
    "task": Arm("so, + cross entropy with the task 0.01", _WHOLE, routing={"task": 0.01}),
    "task 1.0": Arm("so, + cross entropy with the task 1.0", _WHOLE, routing={"task": 1.0}),
    "teacher": Arm(
        "trained with the true task's prompt; the router learns by cross entropy with the task 0.1",
        _WHOLE, routing={"task": 0.1}, teacher=1.0,
    ),
    "teacher half": Arm(
        "so in the first half of the run, the router choosing in the second", _WHOLE, routing={"task": 0.1}, teacher=0.5
    ),
    "teacher half, 1.0": Arm(
        "so, cross entropy with the task 1.0", _WHOLE, routing={"task": 1.0}, teacher=0.5
    ),
    "task, published weights": Arm("SPM as published + cross entropy with the task 0.01", routing={"task": 0.01}),
    "rate": Arm("straight through, routers and prompts at 5 times the rate", _WHOLE, router_rate=5.0),
    "one, log": Arm(
        "one prompt for all, each image's error by itself (log_l1)", {**_WHOLE, "num_prompts": 1}, pixel="log_l1"
    ),
    "task, log": Arm(
        "cross entropy with the task, each image's error by itself", _WHOLE, routing={"task": 0.1}, pixel="log_l1"
    ),
    "teacher, log": Arm(
        "teacher, each image's error by itself, cross entropy 0.5",
        _WHOLE, routing={"task": 0.5}, teacher=1.0, pixel="log_l1",
    ),
    "oracle, log": Arm("the true task's prompt, each image's error by itself", _WHOLE, oracle=True, pixel="log_l1"),
    "told, log": Arm(
        "one prompt, but every block is told the true task, each image's error by itself",
        {**_WHOLE, "num_prompts": 1}, told=True, pixel="log_l1",
    ),
    "task + cpr": Arm(
        "cross entropy with the task 0.01, + CPR, ratio", _WHOLE, cpr={**_CPR, "form": "ratio"}, routing={"task": 0.01}
    ),
    **{f"alone {task}": Arm(f"{task} alone, one prompt", {**_WHOLE, "num_prompts": 1}, only=task) for task in TASKS},
}  # fmt: skip
