"""From a configuration to its parts: data, model, loss, schedule, validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpl.errors import CplError
from cpl.training.config import TrainConfig
from cpl.training.schedule import CosineSchedule


def model(config: TrainConfig, task_names: Sequence[str]) -> nn.Module:
    """The network, with fresh weights from torch's global generator."""
    from cpl.models import create_model
    from cpl.nn import set_keep

    section = config.model
    overrides: dict[str, Any] = dict(section.overrides)
    for name in ("num_prompts", "top_k", "normalize"):
        if getattr(section, name) is not None:
            overrides[name] = getattr(section, name)
    if config.loss.kind == "cpr":
        overrides["negative_weights"] = config.loss.negative_weights
    network = create_model(section.name, task_names=tuple(task_names), **overrides)
    set_keep(network, config.keep)
    return network


def criterion(config: TrainConfig) -> nn.Module | None:
    """CPR as configured; None for a loss of pixels alone."""
    from cpl.losses import ContrastivePromptRegularization

    loss = config.loss
    if loss.kind != "cpr":
        return None
    return ContrastivePromptRegularization(
        form=loss.form,
        features=loss.features,
        layer_weights=loss.layer_weights,
        weight=loss.weight,
        margin=loss.margin,
        temperature=loss.temperature,
        normalize_features=loss.normalize_features,
        weights_file=loss.feature_weights,
    )


def pixel_loss(config: TrainConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """What is measured without CPR."""
    from cpl.losses.pixel import PIXEL_LOSSES

    return PIXEL_LOSSES["l1" if config.loss.kind == "cpr" else config.loss.kind]


def routing(config: TrainConfig) -> nn.Module | None:
    """What is added to the loss for the routers' sake; None where nothing is."""
    from cpl.losses import RoutingLoss

    section = config.loss.routing
    return RoutingLoss(section.task, section.balance, section.information) if section.any else None


def initialise(network: nn.Module, path: str) -> list[str]:
    """Load into ``network`` what fits of the checkpoint ``path``; returns lines naming what does not.

    Raises:
        CplError: nothing fits.
    """
    from cpl.models.checkpoint import load_checkpoint
    from cpl.models.infer import UnclearArchitecture

    try:
        source = load_checkpoint(path)[0].state_dict()
    except (
        UnclearArchitecture
    ):  # either has the same weights, and which one is trained is the configuration's
        source = load_checkpoint(path, architecture="cplir")[0].state_dict()
    own = network.state_dict()
    fits = {name: value for name, value in source.items() if name in own and own[name].shape == value.shape}
    if not fits:
        raise CplError(
            f"{path}: none of its {len(source)} parameters fits {type(network).__name__}; set model.*"
        )
    network.load_state_dict(fits, strict=False)
    lines = [f"started from {path}: {len(fits)} of {len(own)} parameters"]
    for name in sorted(own.keys() - fits.keys()):
        reason = (
            f"the file's shape is {tuple(source[name].shape)}, the model's {tuple(own[name].shape)}"
            if name in source
            else "not in the file"
        )
        lines.append(f"  {name} starts afresh: {reason}")
    lines += [f"  {name} is not used: not in the model" for name in sorted(source.keys() - own.keys())]
    return lines


def optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what of ``network`` is trained."""
    from cpl.training.optimizer import PromptAdamW, pools_of

    o = config.optimizer
    return PromptAdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=o.lr,
        betas=o.betas,
        weight_decay=o.weight_decay,
        eps=o.eps,
        fused=True,  # one kernel for all parameters; a CPU's default is a dozen small ops for each
        pools=pools_of(network) if o.keep_unused_prompts else [],
    )


def schedule(config: TrainConfig, steps: int, steps_per_epoch: float) -> CosineSchedule:
    """The learning rate by step; ``steps_per_epoch`` turns epochs into steps."""
    section = config.schedule
    unit = steps_per_epoch if section.unit == "epochs" else 1.0
    periods = [p * unit for p in section.periods] if section.periods else [float(steps)]
    warmup = section.warmup * unit
    if section.kind == "cosine" and warmup >= periods[0]:
        raise CplError(
            f"schedule.warmup={section.warmup} {section.unit} fills the first period of {periods[0] / unit:g}: lower it"
        )
    return CosineSchedule(
        peak=config.optimizer.lr,
        floor=section.min_lr,
        warmup=warmup,
        periods=() if section.kind == "constant" else tuple(periods),
        warmup_floor=section.warmup_lr,
    )


def training_dataset(config: TrainConfig) -> Any:
    """What to train on: map-style, any index >= 0, an item a function of (seed, index)."""
    from cpl.data import build_dataset

    return build_dataset(config.data, seed=config.seed)


def validation_cases(config: TrainConfig) -> Sequence[Mapping[str, Any]] | None:
    """What to validate on, or None where the configuration names nothing."""
    from cpl.data import build_cases

    return None if config.data.validation is None else build_cases(config.data.validation, seed=config.seed)


def data_problems(config: TrainConfig) -> list[str]:
    """What is wrong with the data's folders and files, one line each."""
    from cpl.data import check

    return [str(problem) for problem in check(config.data).problems]


def evaluate(network: nn.Module, cases: Sequence[Mapping[str, Any]], config: TrainConfig) -> Any:
    """An Evaluation of ``network`` as it stands, on the device it is on."""
    from cpl.inference.evaluate import evaluate as run

    return run(network, cases, channel=config.channel)


def evaluation_figures(result: Any) -> dict[str, float]:
    """The averages and each task's PSNR, under the names that TensorBoard shows."""
    average = result.average
    return {
        "psnr": average.restored_psnr,
        "ssim": average.restored_ssim,
        "degraded_psnr": average.degraded_psnr,
        **{f"psnr/{task}": scores.restored_psnr for task, scores in result.tasks.items()},
    }
