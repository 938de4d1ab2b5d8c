"""The training loop: accelerate for devices and processes, everything that a resumed run needs in checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from cpl.models.config import ModelConfig
from cpl.training import build, preflight, rng
from cpl.training.allocator import keep_freed_memory
from cpl.training.checkpoints import CheckpointStore
from cpl.training.config import TrainConfig
from cpl.training.guard import NonFiniteGuard
from cpl.training.progress import Reporter
from cpl.training.resume import Resume
from cpl.training.routing import RoutingMeter, flat
from cpl.training.sampler import StepBatchSampler
from cpl.training.signals import StopSignals, ignore_interrupt
from cpl.training.step import TrainingStep

CONFIG_FILE, BEST_FILE, LAST_FILE = "config.yaml", "best.safetensors", "last.safetensors"
STATE_FORMAT, STATE_VERSION = "cpl-training-state", 1


@dataclass(frozen=True)
class RunResult:
    """How a run ended. ``signal``: the signal that stopped it early, else 0; ``best_psnr``: dB, of the best
    validation, else None; ``evaluation``: the last validation's Evaluation, else None (also on ranks > 0)."""

    run_dir: Path
    step: int
    steps: int
    signal: int
    best_psnr: float | None
    evaluation: Any


class Trainer:
    """Trains as ``config`` says.

    Args:
        config: the run.
        resume: continue this run folder (or one of its checkpoint folders); True: the config's own.
        allow_thread_change: resume at another thread count, which costs the bit-for-bit guarantee.
        console: a rich Console to report on; default: stderr.

    Everything that can be wrong is looked for here and at the start of :meth:`run`, before any step.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        resume: str | os.PathLike[str] | bool = False,
        allow_thread_change: bool = False,
        console: Any = None,
    ) -> None:
        preflight.check_devices(config)
        self.config = config
        self.run_dir = Path(config.run_dir())
        self.store = CheckpointStore(self.run_dir, config.keep_checkpoints)
        self._resume = Resume(config, self.run_dir, resume, allow_thread_change) if resume else None
        if self._resume is None:
            preflight.check_no_run(self.run_dir, self.store)
        self._console = console
        self._evaluation: Any = None

    def run(self) -> RunResult:
        """Train to the last step, or to the step at which SIGINT or SIGTERM arrives.

        Raises:
            CplError: something is wrong with data, devices, disk or the checkpoint to resume from
                (before any step); the loss stays non-finite; a checkpoint cannot be written.
        """
        with _deterministic(self.config.deterministic):
            self._set_up()
            try:
                with StopSignals() as stop:
                    signal = self._train(stop)
            finally:
                self.report.close()
        psnr = None if self.best["step"] < 0 else float(self.best["psnr"])
        return RunResult(self.run_dir, self.step, self.steps, signal, psnr, self._evaluation)

    # Setting up

    def _set_up(self) -> None:
        config = self.config
        preflight.check_data(config)
        self.accelerator = _accelerator(config)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        rng.seed_everything(config.seed)
        self.dataset = build.training_dataset(config)
        self.per_step = config.batch_size * self.ranks
        epoch = len(self.dataset) / self.per_step  # steps in one pass
        self.steps = config.steps or math.ceil((config.epochs or 0) * epoch)
        self.schedule = build.schedule(config, self.steps, epoch)
        model = build.model(config, tuple(self.dataset.tasks)).to(self.accelerator.device)
        architecture: ModelConfig = model.config  # type: ignore[assignment]  # of every network that build makes
        preflight.check_prompts(config, self.dataset.tasks, architecture.num_prompts)
        fitted = build.initialise(model, config.init) if config.init and self._resume is None else []
        preflight.check_disk(self.run_dir, model, config)

        self.model = model
        self.ema = None
        if config.ema is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        criterion = build.criterion(config)
        self.module = TrainingStep(
            model,
            criterion,
            config.loss.num_negatives if criterion is not None else 0,
            build.routing(config),
            build.pixel_loss(config),
        )
        self.routers = RoutingMeter(len(self.dataset.tasks)) if architecture.prompting == "sparse" else None
        self._warn_if_flat = self.routers is not None and len(self.dataset.tasks) > 1
        self.wrapped = self.accelerator.prepare(self.module)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build.optimizer(config, model)
        self.guard = NonFiniteGuard(config.max_nonfinite, config.max_nonfinite_in_a_row)
        self.best: dict[str, Any] = {"psnr": -math.inf, "step": -1}
        self.step = 0  # updates done
        self.cases = build.validation_cases(config)

        notes: list[str] = fitted
        if self._resume is not None:
            notes += self._restore(self._resume)
        if self.accelerator.is_main_process:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.store.remove_unfinished()
            _write_text(self.run_dir / CONFIG_FILE, config.to_yaml())
        self.report = Reporter(
            self.run_dir,
            first_step=self.step,
            steps=self.steps,
            enabled=self.accelerator.is_main_process,
            console=self._console,
        )
        for note in notes:
            self.report.say(note)
        count = sum(p.numel() for p in self.parameters)
        self.report.say(
            f"{config.model.name}: {count:,} parameters; {len(self.dataset)} training images, tasks "
            f"{', '.join(self.dataset.tasks)}; {self.steps} steps of {self.per_step} on {self.ranks} x "
            f"{self.accelerator.device.type}, {torch.get_num_threads()} threads; run folder {self.run_dir}"
        )

    def _restore(self, resume: Resume) -> list[str]:
        state, notes = resume.load(self.ranks, self.accelerator.device.type)
        self.model.load_state_dict(state["weights"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load(state["nonfinite"])
        if (self.run_dir / BEST_FILE).exists():  # in a new folder there is no best yet
            self.best = dict(state["best"])
        self.step = state["step"]
        rng.restore(state["rng"][self.rank])
        return [*notes, f"resumed {resume.path} at step {self.step}"]

    def _batches(self) -> Iterator[Mapping[str, Any]]:
        config = self.config
        sampler = StepBatchSampler(
            len(self.dataset),
            seed=config.seed,
            batch_size=config.batch_size,
            start=self.step,
            stop=self.steps,
            rank=self.rank,
            ranks=self.ranks,
        )
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=sampler,
                num_workers=config.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
                worker_init_fn=ignore_interrupt if config.num_workers else None,
                generator=torch.Generator(),  # or the loader would draw from the global state we restored
            )
        )

    # Training

    def _train(self, stop: StopSignals) -> int:
        config, meter = self.config, _Meter(self.accelerator.device)
        batches = self._batches()
        while self.step < self.steps:
            signal = self._update(next(batches), meter, stop)
            self.step += 1
            self.report.advance(self.step)
            last = self.step == self.steps
            if self.step % config.log_every == 0 or last:
                figures, rate = meter.take(self.accelerator, self.per_step)
                figures |= {f"loss/{name}": float(value) for name, value in self._parts.items()}
                figures["learning_rate"] = self.schedule(self.step - 1)
                figures |= self._routing_figures()
                self.report.log(self.step, figures, rate)
            due = config.validate_every is not None and self.step % config.validate_every == 0
            if (due or last) and not signal:
                with meter.paused():
                    self._validate()
            if self.step % config.save_every == 0 or last or signal:
                with meter.paused():
                    self._save()
            if signal and not last:
                return signal
        return 0

    def _update(self, batch: Mapping[str, Any], meter: _Meter, stop: StopSignals) -> int:
        """One step; returns the signal that some rank received, or 0."""
        device = self.accelerator.device
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.step)
        self.module.teacher = self.step < round(self.config.loss.routing.teacher * self.steps)
        tasks = batch["task"].to(device, non_blocking=True)
        output = self.wrapped(
            batch["degraded"].to(device, non_blocking=True),
            batch["target"].to(device, non_blocking=True),
            draw_seed(self.config.seed, self.step, self.rank),
            (self.step + 1) % self.config.log_every == 0,
            tasks,
        )
        self._parts = output.parts
        self.accelerator.backward(output.loss)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm or math.inf)
        # One exchange a step, so that all ranks skip, stop and save at the same one.
        flags = torch.stack(
            [
                (~torch.isfinite(output.loss.detach())).to(torch.int64).to(device),
                (~torch.isfinite(norm)).to(torch.int64).to(device),
                torch.tensor(stop.received, device=device),
            ]
        )
        bad_loss, bad_gradient, signal = self._largest(flags)
        if bad_loss or bad_gradient:
            newest = self.store.paths()
            what = "the loss" if bad_loss else "the gradient"
            hint = f"the newest checkpoint is {newest[-1]}" if newest else "no checkpoint was written yet"
            self.report.say(self.guard.skipped(self.step, what, hint))
        else:
            self.guard.passed()
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(self.model)
            meter.add(output.loss.detach(), output.mse)
            if self.routers is not None:
                self.routers.add(output.logits, tasks)
        self.optimizer.zero_grad(set_to_none=True)
        return signal

    def _routing_figures(self) -> dict[str, float]:
        """What this process's routers did since the last ones; says once if they do not choose."""
        figures = {} if self.routers is None else self.routers.take()
        if self._warn_if_flat and self.step >= self.steps / 10:
            told = flat(figures)
            self._warn_if_flat = told is None
            if told:
                self.report.say(
                    f"warning: after {self.step} of {self.steps} steps no router's choice tells the tasks apart, so "
                    'sparse prompts do little yet; see docs/model.md, "Routers that choose"'
                )
        return figures

    def _largest(self, flags: Tensor) -> list[int]:
        if self.ranks > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return [int(f) for f in flags.tolist()]

    # Validation and checkpoints

    @property
    def trained(self) -> nn.Module:
        """The weights to use: the EMA's, or the model's when EMA is off."""
        return self.model if self.ema is None else self.ema.module

    def _validate(self) -> None:
        if self.cases is None:
            return
        if self.accelerator.is_main_process:
            model = self.trained
            training = model.training
            result = build.evaluate(model.eval(), self.cases, self.config)
            model.train(training)
            self._evaluation = result
            figures = build.evaluation_figures(result)
            if figures["psnr"] > self.best["psnr"]:
                self.best = {"psnr": figures["psnr"], "step": self.step}
                with preflight.disk_errors(self.run_dir / BEST_FILE):
                    self._save_model(self.run_dir / BEST_FILE)
            self.report.validation(
                self.step,
                figures,
                f"validation at step {self.step}: PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f} "
                f"(degraded {figures['degraded_psnr']:.2f} dB); best {self.best['psnr']:.2f} dB at step "
                f"{self.best['step']}",
            )
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        """Write the checkpoint of this step (every rank calls it: each has random states of its own)."""
        from accelerate.utils import gather_object

        states = gather_object([rng.capture()])
        if self.accelerator.is_main_process:
            state = {
                "format": STATE_FORMAT,
                "format_version": STATE_VERSION,
                "step": self.step,
                "config": self.config.model_dump(mode="json"),
                "threads": torch.get_num_threads(),
                "ranks": self.ranks,
                "device": self.accelerator.device.type,
                "torch": str(torch.__version__),
                "weights": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "nonfinite": self.guard.state(),
                "best": self.best,
                "rng": states,
            }
            path = self.store.save(self.step, state, self._save_model)
            with preflight.disk_errors(self.run_dir / LAST_FILE):
                self._save_model(self.run_dir / LAST_FILE)
            self.report.say(f"saved {path}")
        self.accelerator.wait_for_everyone()

    def _save_model(self, path: Path) -> None:
        from cpl.models.checkpoint import save_checkpoint

        best = (
            {} if self.best["step"] < 0 else {"best_psnr": self.best["psnr"], "best_step": self.best["step"]}
        )
        save_checkpoint(
            self.trained,
            path,
            step=self.step,
            preset=self.config.name,
            averaged=self.ema is not None,
            tasks=list(self.dataset.tasks),
            **best,
        )


def draw_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the negative prompts that ``rank`` draws at ``step``."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Meter:
    """Means of loss and PSNR, and images per second, since they were last taken; no sync in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=self._device)  # loss, steps, PSNR, images
        self._updates = 0
        self._since = time.monotonic()

    def add(self, loss: Tensor, mse: Tensor) -> None:
        decibels = -10 * torch.log10(mse.double().clamp(min=1e-10))
        self._sums += torch.stack(
            [loss.double(), loss.new_tensor(1.0).double(), decibels.sum(), decibels.new_tensor(len(mse))]
        )
        self._updates += 1

    def take(self, accelerator: Any, per_step: int) -> tuple[dict[str, float], float]:
        sums = accelerator.reduce(self._sums, "sum")
        loss, steps, decibels, images = sums.tolist()
        rate = self._updates * per_step / max(time.monotonic() - self._since, 1e-9)
        self._reset()
        return {
            "loss": loss / steps if steps else math.nan,
            "psnr": decibels / images if images else math.nan,
        }, rate

    def paused(self) -> _Pause:
        return _Pause(self)


class _Pause:
    """Keeps validation and saving out of images per second."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._meter._since += time.monotonic() - self._started


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    return Accelerator(
        cpu=config.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The others wait while rank 0 validates, which may take longer than NCCL's ten minutes.
            InitProcessGroupKwargs(timeout=timedelta(hours=3)),
        ],
    )


class _deterministic:
    """torch's deterministic algorithms for the length of a run; the former setting comes back after it."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        self._before = torch.are_deterministic_algorithms_enabled()
        if self._wanted:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            torch.use_deterministic_algorithms(self._before)


def _write_text(path: Path, text: str) -> None:
    from cpl.files import atomic_write

    with atomic_write(path) as file:
        file.write(text.encode())
