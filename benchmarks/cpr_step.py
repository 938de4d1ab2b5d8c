"""What contrastive prompt regularization adds to a training step: python -m benchmarks.cpr_step [--out FILE.json]

A step of cplir-small on images of 128x128: forward, loss, backward, AdamW. In turns, round after round:

    plain, reference    L1 alone, every kernel in plain PyTorch: the unit of the ratios
    plain               L1 alone, the kernels that are the default
    CPR                 with K = 4 negatives, features="random": the encoder once, all negatives in one call of the
                        decoder, and in one of the feature network
    CPR, naive          the same loss, the whole network again for each negative, and each negative for itself
                        through the feature network

What CPR adds is the difference to "plain" of the same round, in units of "plain, reference" of that round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import cpl
import cpl_kernels
from benchmarks import harness, idle
from benchmarks.facts import facts
from cpl.losses import ContrastivePromptRegularization
from cpl.nn.prompt import NegativeDraw

MODEL, SIDE, NEGATIVES, SEED, THREADS = "cplir-small", 128, 4, 7, 2
MOST_SECONDS = 120.0
Loss = Callable[[], Tensor]


def losses(batch: int, model_name: str = MODEL, side: int = SIDE) -> tuple[torch.nn.Module, dict[str, Loss]]:
    """The model, and each variant's loss of one batch; the two with negatives are the same number."""
    torch.manual_seed(0)
    model = cpl.create_model(model_name)
    criterion = ContrastivePromptRegularization(form="subtractive", features="random")
    degraded, target = torch.rand(batch, 3, side, side), torch.rand(batch, 3, side, side)
    seed = torch.tensor(SEED)

    def plain() -> Tensor:
        return F.l1_loss(model(degraded), target)

    def regularized() -> Tensor:
        restored, negatives = model.forward_with_negatives(degraded, NEGATIVES, seed=seed)
        loss = criterion(restored, target, negatives)
        assert isinstance(loss, Tensor)
        return loss

    def naive() -> Tensor:
        restored = model(degraded)
        distances = []
        anchor = criterion.features(restored)
        for j in range(NEGATIVES):
            with torch.no_grad():
                negative = degraded + model.decode(
                    model.encode(degraded), NegativeDraw(seed, NEGATIVES, batch, j, 1)
                )
                layers = criterion.features(negative)
            pairs = zip(criterion._weights_of(len(anchor)), anchor, layers, strict=True)
            distances.append(sum(w * (a - other).abs().mean() for w, a, other in pairs))
        return F.l1_loss(restored, target) - criterion.weight * torch.stack(distances).mean()

    torch.testing.assert_close(naive(), regularized(), rtol=1e-4, atol=1e-6)
    return model, {"plain, reference": plain, "plain": plain, "CPR": regularized, "CPR, naive": naive}


def steps(model: torch.nn.Module, by_name: dict[str, Loss]) -> harness.Calls:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(name: str, loss: Loss) -> None:
        with cpl_kernels.use_backend("reference" if "reference" in name else None):
            loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {name: lambda n=name, f=loss: step(n, f) for name, loss in by_name.items()}


def added(times: dict[str, list[float]], name: str) -> dict[str, float]:
    """Median and quartiles over the rounds of what ``name`` adds to a plain step, in plain steps of the reference."""
    rounds = zip(times[name], times["plain"], times["plain, reference"], strict=True)
    low, middle, high = statistics.quantiles(
        [(with_ - without) / unit for with_, without, unit in rounds], n=4
    )
    return {"added": middle, "added_q1": low, "added_q3": high}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_cpr_step.json"))
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    idle.require()
    torch.set_num_threads(THREADS)
    harness.LONG_SECONDS = MOST_SECONDS  # a difference of two needs all its rounds
    times = harness.interleaved(steps(*losses(args.batch)))
    rows = []
    for name, taken in times.items():
        row = {"name": name, "seconds": statistics.median(taken), "rounds": len(taken)}
        row |= harness.ratios(times, "plain, reference")[name]
        if name.startswith("CPR"):
            row |= added(times, name)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    result = {
        **facts(),
        "step": {"model": MODEL, "batch": args.batch, "side": SIDE, "negatives": NEGATIVES},
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
