"""What a trained arm is worth on photos that were held out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.ablation.arms import Arm
from benchmarks.ablation.data import CLEAN, TASKS, Crops, as_float
from benchmarks.ablation.told import tell
from cpl.inference.routing import force_prompts, information, watch_routing
from cpl.models import Restorer
from cpl.models.config import LEVELS

PROBED = 1000  # training crops that the linear probe learns from


def measure(network: Restorer, arm: Arm, train: Crops, test: Crops) -> dict[str, Any]:
    """PSNR by degradation, what routers choose, and what their features know of the task."""
    network.eval()
    found: dict[str, Any] = {"psnr": _psnr(network, arm, test)}
    if network.config.prompting == "sparse" and network.config.num_prompts > 1:
        found |= {"choices": _choices(network, arm, test), "wrong": _wrong(network, arm, test)}
    if network.config.num_prompts and not arm.only:
        found["probe"] = _probe(network, train, test)
    return found


def psnr(restored: Tensor, target: Tensor) -> Tensor:
    """[B] in dB, of [B, 3, H, W] clipped to [0, 1]."""
    return -10 * (restored.clamp(0, 1) - target).square().double().mean((1, 2, 3)).clamp(min=1e-10).log10()


def _psnr(network: Restorer, arm: Arm, test: Crops) -> dict[str, dict[str, float]]:
    found = {}
    for name in (*test.names, CLEAN):
        rows = test.of(test.names[0] if name == CLEAN else name)
        target = as_float(test.target[rows])
        degraded = target if name == CLEAN else as_float(test.degraded[rows])
        if arm.needs_task and _task_of(name) is None:
            continue  # no prompt is the true one
        restored = _restore(network, degraded, _true_prompts(arm, name, len(rows)))
        values = psnr(restored, target)
        found[name] = {
            "restored": float(values.mean()),
            "degraded": float(psnr(degraded, target).mean()),
            "each": [round(value, 3) for value in values.tolist()],
        }
    return found


def _true_prompts(arm: Arm, task: str, count: int) -> Tensor | None:
    return torch.full((count,), list(TASKS).index(_task_of(task) or "")) if arm.needs_task else None


def _task_of(name: str) -> str | None:
    first = name.split()[0]
    return first if first in TASKS else None


@torch.inference_mode()
def _restore(network: Restorer, degraded: Tensor, prompts: Tensor | None = None) -> Tensor:
    restored = []
    for i in range(0, len(degraded), 8):
        if prompts is None:
            restored.append(network(degraded[i : i + 8]))
        else:
            tasks = prompts[i : i + 8]
            forced = tasks.clamp(
                max=network.config.num_prompts - 1
            )  # where blocks are told, there is one prompt
            with tell(network, tasks), force_prompts(network, forced):
                restored.append(network(degraded[i : i + 8]))
    return torch.cat(restored)


def _choices(network: Restorer, arm: Arm, test: Crops) -> dict[str, Any]:
    """For each level, how often each prompt is chosen for each task, [T][N], and the information (1: all)."""
    counts = {level: torch.zeros(len(TASKS), network.config.num_prompts) for level in LEVELS}
    for number, task in enumerate(TASKS):
        degraded = as_float(test.degraded[test.of(task)])
        with watch_routing(network) as routing:
            _restore(network, degraded, _true_prompts(arm, task, len(degraded)))
        for image in routing.choices():
            for choice in image:
                counts[choice.level][number, choice.chosen[0]] += 1
    return {
        f"level{level}": {
            "chosen": (counts[level] / counts[level].sum(1, keepdim=True)).tolist(),
            "information": information(counts[level]),
        }
        for level in LEVELS
    }


@torch.inference_mode()
def _wrong(network: Restorer, arm: Arm, test: Crops) -> dict[str, float]:
    """Task -> dB lost, on the mean of two draws of wrong prompts at all levels, with the right ones' weights."""
    for level in LEVELS:
        getattr(network, f"prompt{level}").negative_weights = "positive"
    found = {}
    for task in TASKS:
        rows = test.of(task)
        target, degraded = as_float(test.target[rows]), as_float(test.degraded[rows])
        lost = []
        for i in range(0, len(rows), 8):
            x, y = degraded[i : i + 8], target[i : i + 8]
            prompts = _true_prompts(arm, task, len(x))
            if prompts is None:
                right, wrong = network.forward_with_negatives(x, 2, seed=i)
            else:
                with force_prompts(network, prompts):
                    right, wrong = network.forward_with_negatives(x, 2, seed=i)
            lost.append(psnr(right, y) - torch.stack([psnr(w, y) for w in wrong]).mean(0))
        found[task] = float(torch.cat(lost).mean())
    return found


def _probe(network: Restorer, train: Crops, test: Crops) -> dict[str, float]:
    """How many test crops' tasks logistic regression tells from what each level's router looks at: their part."""
    seen = [_features(network, as_float(train.degraded[:PROBED])), train.tasks[:PROBED]]
    rows = torch.cat([test.of(task) for task in TASKS])
    other = _features(network, as_float(test.degraded[rows]))
    labels = torch.cat([torch.full((len(test.of(task)),), i) for i, task in enumerate(TASKS)])
    return {
        f"level{level}": _accuracy(seen[0][level], seen[1], other[level], labels)
        for level in LEVELS  # type: ignore[index,arg-type]
    }


@torch.inference_mode()
def _features(network: Restorer, degraded: Tensor) -> dict[int, Tensor]:
    """[n, C] of each level: the means that the routers look at."""
    found: dict[int, list[Tensor]] = {level: [] for level in LEVELS}
    hooks = [
        getattr(network, f"prompt{level}").register_forward_pre_hook(
            lambda module, inputs: found[module.level].append(module.mean(inputs[0]))
        )
        for level in LEVELS
    ]
    try:
        _restore(network, degraded)
    finally:
        for hook in hooks:
            hook.remove()
    return {level: torch.cat(values) for level, values in found.items()}


def _accuracy(x: Tensor, labels: Tensor, other: Tensor, expected: Tensor) -> float:
    x, other = x.clone().double(), other.clone().double()
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, other = (x - mean) / deviation, (other - mean) / deviation
    layer = torch.nn.Linear(x.shape[1], len(TASKS)).double()
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return float((layer(other).argmax(1) == expected).double().mean())
