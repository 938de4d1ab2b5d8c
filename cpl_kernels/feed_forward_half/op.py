"""feed_forward_half: its maps and its gradients, in the functions of the ops that it is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import backends
from cpl_kernels.gated_dwconv import gated_dwconv
from cpl_kernels.gated_dwconv import op as gate_op
from cpl_kernels.half import Half, Needs, Normed, Tensors
from cpl_kernels.strips import rows_of_a_strip, strips


class FeedForwardHalf(Half):
    """``tensors``: those of the norm, project_in and its bias, dw and its bias, project_out and its bias."""

    op = "feed_forward_half"

    def between(self, hidden: Tensor) -> Tensor:
        weight, bias = self.tensors[4:6]
        return gated_dwconv(hidden, weight, bias, backend=self.request["gated_dwconv"] or None)  # type: ignore[arg-type]

    def in_strips(self, x: Tensor) -> Tensor | None:
        widest = self.tensors[2].shape[0]  # type: ignore[union-attr]
        rows = rows_of_a_strip(x.shape, widest, x.element_size(), x.device)
        if rows is None:
            return None
        tensors = self.cast_tensors(self.tensors)
        whole: Tensor | None = None
        for strip in strips(x.shape[2], rows, 1):
            hidden = self.normed(strip.with_neighbours(x), tensors).hidden
            gated = strip.inner(self._gated(hidden, tensors)).contiguous()
            y = self.close(strip.own(x), gated, tensors)
            if whole is None:
                whole = (
                    torch.empty_like(x, dtype=y.dtype)
                    if self.residual
                    else y.new_empty(*y.shape[:2], *x.shape[2:])
                )
            strip.own(whole).copy_(y)
        return whole

    def maps(self, x: Tensor, tensors: Tensors) -> Tensors:
        normed = self.normed(x, tensors)
        return *normed, self._gated(normed.hidden, tensors)

    def kept(self, x: Tensor, tensors: Tensors, maps: Tensors, keep: str, needs: Needs) -> Tensors:
        normed, gated = Normed(*maps[:4]), maps[4] if needs[-2] else None
        if not any(needs[:-2]):
            return *(None for _ in maps[:-1]), gated
        normed = self.kept_of_normed(x, normed, keep, needs)
        given_tensors = [t for t in (normed.hidden, *tensors[4:6]) if t is not None]
        given = backends.gives_output("gated_dwconv", self.request["gated_dwconv"], *given_tensors)
        return *normed, gated if keep == "all" and not given else None

    def backward(
        self, dproduct: Tensor, x: Tensor | None, tensors: Tensors, maps: Tensors, needs: Needs
    ) -> Tensors:
        normed, gated = Normed(*maps[:4]), maps[4]
        del maps
        if not any(needs[:-2]):
            return *(None for _ in needs[:-2]), *self.gradients_of(tensors[-2:], dproduct, gated, needs[-2:])
        assert x is not None
        given = normed.hidden, *tensors[4:6], True, self.request["gated_dwconv"]
        dgated = self.gradient_of_mixed(dproduct, tensors)
        if gated is None and needs[-2]:
            dhidden, dweight, dbias, gated = gate_op.gated_dwconv_backward_and_output(dgated, *given)
            last = self.gradients_of(tensors[-2:], dproduct, gated, needs[-2:])
            del gated, dgated
        else:
            last = self.gradients_of(tensors[-2:], dproduct, gated, needs[-2:])
            del gated
            dhidden, dweight, dbias = gate_op.gated_dwconv_backward(dgated, *given)
            del dgated
        del given
        normed = normed._replace(hidden=None)
        first = self.backward_of_normed(dhidden, x, tensors, normed, needs[:5])
        return *first, dweight, dbias, *last

    def _gated(self, hidden: Tensor | None, tensors: Tensors) -> Tensor:
        return gate_op.gated_dwconv(hidden, *tensors[4:6], True, self.request["gated_dwconv"])
