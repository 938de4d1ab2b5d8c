"""What routers should be like, added to a restoration loss: that they choose, and choose by the degradation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpl_kernels import checks


class RoutingLoss(nn.Module):
    """``loss(logits {level: [B, N]}, tasks [B])`` -> scalar, the mean over the levels of

        task * CE + balance * LB + information * (H(prompt | image) - H(prompt))

    With p the softmax of an image's logits and f_n the part of the images whose largest logit is n:

        CE = mean_b -log p[b, tasks[b]]                 the task's own prompt is the right one; N >= tasks
        LB = N sum_n f_n mean_b p[b, n]                 1 where all prompts are used alike; f is a constant
        H(prompt | image) = mean_b sum_n -p log p       0 where each image's choice is certain
        H(prompt) = sum_n -m log m, m = mean_b p        log N where all prompts are used alike

    Only CE looks at labels. The last two together are minus the mutual information of image and prompt. LB and the
    entropies are of the batch at hand, and of a single image they say nothing.

    Args:
        task, balance, information: weights; 0 leaves a term out.

    Raises:
        ValueError: a negative weight, all of them 0; logits that are not [B, N] of as many images as tasks; a task that
            has no prompt (looked at on the CPU).

    Source: balance: Fedus et al., "Switch Transformers", arXiv 2101.03961, equation 4; information: Krause et al.,
    "Discriminative clustering by regularized information maximization", NIPS 2010.
    """

    def __init__(self, task: float = 0.0, balance: float = 0.0, information: float = 0.0) -> None:
        super().__init__()
        for name, value in (("task", task), ("balance", balance), ("information", information)):
            checks.at_least(name, value, 0)
        if not (task or balance or information):
            raise ValueError("give at least one of task, balance and information a weight above 0")
        self.task, self.balance, self.information = task, balance, information

    def forward(self, logits: Mapping[int, Tensor], tasks: Tensor) -> Tensor:
        if not logits:
            raise ValueError("there are no routers' logits; give a network with prompts")
        for level, values in logits.items():
            if values.dim() != 2 or len(values) != len(tasks):
                raise ValueError(
                    f"logits of level {level} must be [B, N] for {len(tasks)} tasks, got {tuple(values.shape)}"
                )
            if (
                self.task
                and tasks.device.type == "cpu"
                and len(tasks)
                and int(tasks.max()) >= values.shape[1]
            ):
                raise ValueError(
                    f"task {int(tasks.max())} has no prompt of its own among {values.shape[1]}; give the network more"
                )
        return torch.stack([self._of_level(values.float(), tasks) for values in logits.values()]).mean()

    def _of_level(self, logits: Tensor, tasks: Tensor) -> Tensor:
        total = logits.new_zeros(())
        prompts = logits.shape[1]
        log_p = logits.log_softmax(1)
        if self.task:
            total = total + self.task * F.nll_loss(log_p, tasks)
        if self.balance:
            chosen = F.one_hot(logits.argmax(1), prompts).to(log_p.dtype).mean(0)
            total = total + self.balance * prompts * (chosen * log_p.exp().mean(0)).sum()
        if self.information:
            p = log_p.exp()
            mean = p.mean(0)
            of_image = -(p * log_p).sum(1).mean()
            of_all = -(mean * mean.clamp(min=1e-30).log()).sum()
            total = total + self.information * (of_image - of_all)
        return total

    def extra_repr(self) -> str:
        return f"task={self.task}, balance={self.balance}, information={self.information}"
