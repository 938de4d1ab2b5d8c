"""What a training run is: one validated structure, written as YAML beside its checkpoints."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cpl.data.config import DataConfig
from cpl.models import MODELS

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


# What may differ between a run and its resumption: nothing here touches the weights' path.
FREE = frozenset(
    (
        *("name", "init", "output_dir", "device", "num_workers", "data.root", "data.validation", "channel"),
        *("log_every", "validate_every", "save_every", "keep_checkpoints"),
        *("max_nonfinite", "max_nonfinite_in_a_row"),
    )
)


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)


class ModelSection(Section):
    """The network, by name; None leaves a value to the architecture."""

    name: str = "cplir"
    num_prompts: int | None = Field(default=None, ge=1, description="prompts per pool")
    top_k: int | None = Field(default=None, ge=1, description="prompts chosen per image")
    normalize: Literal["none", "topk", "straight_through"] | None = None
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="further create_model overrides (dim, num_blocks, ...)"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in tuple(MODELS):
            raise ValueError(f"must be one of {', '.join(MODELS)}")
        return name


class RoutingSection(Section):
    """What is added to the loss for the routers' sake, by weight; see :class:`cpl.losses.RoutingLoss`."""

    task: NonNegative = Field(
        default=0.0, description="cross entropy with the task, whose prompt is its number's"
    )
    balance: NonNegative = Field(default=0.0, description="that all prompts are used alike")
    information: NonNegative = Field(
        default=0.0, description="minus the mutual information of image and prompt; looks at no labels"
    )

    teacher: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="the first part of the run in which each image gets the prompt of its task, and the router, which "
        "chooses for nobody, learns from `task` alone; 1: all of it",
    )

    @property
    def any(self) -> bool:
        return bool(self.task or self.balance or self.information)


class LossSection(Section):
    """``cpr``: Contrastive Prompt Regularization; ``l1``: plain L1, no negatives; ``log_l1``: the logarithm of each
    image's own, so that tasks with large errors do not drown the others."""

    kind: Literal["cpr", "l1", "log_l1"] = "cpr"
    form: Literal["subtractive", "ratio", "infonce"] = "subtractive"
    features: Literal["vgg16", "random", "pixel"] = "vgg16"
    feature_weights: str | None = Field(default=None, description="file with torchvision's VGG16 weights")
    layer_weights: list[NonNegative] | None = None
    normalize_features: bool = False
    weight: NonNegative = 1e-3
    margin: Positive | None = None
    temperature: Positive = 0.1
    num_negatives: int = Field(default=4, ge=1)
    negative_weights: Literal["own", "positive"] = "own"
    routing: RoutingSection = RoutingSection()


class OptimizerSection(Section):
    """AdamW (torch.optim)."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 2e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-2
    eps: Positive = 1e-8
    keep_unused_prompts: bool = Field(
        default=False,
        description="leave prompts that no image of the batch used as they are: value, moments, decay",
    )


class ScheduleSection(Section):
    """Learning rate: linear warm-up, then cosine, with restarts if several periods are given."""

    kind: Literal["cosine", "constant"] = "cosine"
    unit: Literal["steps", "epochs"] = Field(default="steps", description="what warmup and periods count")
    warmup: NonNegative = 0.0
    warmup_lr: NonNegative = 0.0
    periods: list[Positive] | None = Field(
        default=None,
        description="length of each cosine period, warm-up included in the first; None: the whole run",
    )
    min_lr: NonNegative = 0.0


class TrainConfig(Section):
    """A whole run. Build it with :func:`cpl.training.load_preset`."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: ModelSection = ModelSection()
    data: DataConfig
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    steps: int | None = Field(default=None, ge=1, description="length of the run in updates; or give epochs")
    epochs: Positive | None = Field(default=None, description="length of the run in passes over the data")
    batch_size: int = Field(default=8, ge=1, description="images per process and step")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=0.999, description="EMA decay per step; None: off"
    )
    clip_norm: Positive | None = Field(default=1.0, description="largest gradient norm; None: no clipping")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: Literal["no", "bf16"] = "no"
    keep: Literal["all", "products", "input"] = Field(
        default="all",
        description="what a block keeps for its backward pass: all it needs, its matrix products (0.7 of the "
        "memory, on a GPU 0.54, some per cent slower) or its input (least memory; computes nearly all again)",
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    deterministic: bool = False
    num_workers: int = Field(default=0, ge=0, description="data loading processes per training process")
    init: str | None = Field(default=None, description="checkpoint to fine-tune from")
    channel: Literal["rgb", "y"] = Field(
        default="rgb", description="what validation measures PSNR and SSIM on"
    )
    log_every: int = Field(default=50, ge=1)
    validate_every: int | None = Field(default=5000, ge=1, description="steps; None: only at the end")
    save_every: int = Field(default=5000, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1)
    max_nonfinite: int = Field(default=100, ge=1, description="steps skipped in all before the run stops")
    max_nonfinite_in_a_row: int = Field(default=10, ge=1)
    output_dir: str | None = Field(default=None, description="folder of the run; None: runs/NAME")

    @field_validator("data", mode="before")
    @classmethod
    def _data_given(cls, data: Any) -> Any:
        return {} if data is None else data

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give exactly one of steps and epochs, got {self.steps} and {self.epochs}")
        if self.loss.kind == "cpr" and self.model.name in ("promptir", "restormer"):
            raise ValueError(
                f"loss.kind=cpr needs wrong prompts, which {self.model.name} has not; take loss.kind=l1 or "
                "model.name=cplir"
            )
        if self.loss.routing.teacher and not self.loss.routing.task:
            raise ValueError(
                "loss.routing.teacher chooses prompts in training, so the router learns from loss.routing.task alone: "
                "give that a weight, such as 0.1"
            )
        if self.loss.routing.teacher and (self.model.top_k or 1) != 1:
            raise ValueError(
                f"loss.routing.teacher gives an image one prompt, got model.top_k={self.model.top_k}"
            )
        if self.loss.routing.any and self.model.name == "restormer":
            raise ValueError("loss.routing is for routers, which restormer has not; take model.name=cplir")
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr={self.schedule.min_lr} is above optimizer.lr={self.optimizer.lr}; lower it"
            )
        n, k = self.model.num_prompts, self.model.top_k or 1
        if n is not None and k > n:
            raise ValueError(f"model.top_k={k} is above model.num_prompts={n}; lower it")
        if n is not None and self.loss.kind == "cpr" and n < 2 * k:
            raise ValueError(
                f"loss.kind=cpr draws {k} other prompts, so model.num_prompts must be at least {2 * k}, got {n}"
            )
        return self

    def run_dir(self) -> str:
        """Where the run's files go."""
        return self.output_dir or f"runs/{self.name}"

    def to_yaml(self) -> str:
        """The resolved configuration, every default written out; load_preset reads it back."""
        from cpl.extras import require

        return str(require("yaml").safe_dump(self.model_dump(mode="json"), sort_keys=False))

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """``field: stored X, now Y`` for everything that would change the course of a resumed run."""
        now = self.model_dump(mode="json")
        with contextlib.suppress(
            ValidationError
        ):  # one that an older cpl wrote lacks what came since: the defaults
            stored = TrainConfig.model_validate(stored).model_dump(mode="json")
        lines: list[str] = []
        for key in sorted(now.keys() | stored.keys()):
            lines += _differ(key, stored.get(key), now.get(key))
        return lines


def _differ(path: str, old: Any, new: Any) -> list[str]:
    if path in FREE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differ(f"{path}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [f"{path}: stored {old!r}, now {new!r}"]
