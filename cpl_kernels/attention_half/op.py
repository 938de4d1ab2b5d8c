"""attention_half: its maps and its gradients, in the functions of the ops that it is made of."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.channel_attention import channel_attention
from cpl_kernels.channel_attention import op as attention_op
from cpl_kernels.dwconv import dwconv
from cpl_kernels.dwconv import op as dwconv_op
from cpl_kernels.half import Half, Needs, Normed, Tensors
from cpl_kernels.strips import rows_of_a_strip, strips


class AttentionHalf(Half):
    """``tensors``: those of the norm, qkv and its bias, dw and its bias, temperature, project and its bias."""

    op = "attention_half"

    def between(self, hidden: Tensor) -> Tensor:
        weight, bias, temperature = self.tensors[4:7]
        qkv = dwconv(hidden, weight, bias, backend=self.request["dwconv"] or None)  # type: ignore[arg-type]
        return channel_attention(qkv, temperature, backend=self.request["channel_attention"] or None)  # type: ignore[arg-type]

    def in_strips(self, x: Tensor) -> Tensor | None:
        # The width is that of the block's feed-forward half, so that both halves work in strips from the same size on.
        rows = rows_of_a_strip(x.shape, 2 * int(2.66 * x.shape[1]), x.element_size(), x.device)
        if rows is None:
            return None
        tensors = self.cast_tensors(self.tensors)
        reach = tensors[4].shape[-1] // 2  # type: ignore[union-attr]
        whole: Tensor | None = None
        for strip in strips(x.shape[2], rows, reach):
            qkv = self._convolved(self.normed(strip.with_neighbours(x), tensors).hidden, tensors)
            if whole is None:
                whole = qkv.new_empty(*qkv.shape[:2], *x.shape[2:])
            strip.own(whole).copy_(strip.inner(qkv))
        assert whole is not None
        mixed, *_ = self._attended(whole, tensors)
        del whole
        return self.close(x, mixed, tensors)

    def maps(self, x: Tensor, tensors: Tensors) -> Tensors:
        normed = self.normed(x, tensors)
        return *normed, *self._rest(normed.hidden, tensors)

    def kept(self, x: Tensor, tensors: Tensors, maps: Tensors, keep: str, needs: Needs) -> Tensors:
        normed, mixed = Normed(*maps[:4]), maps[8] if needs[-2] else None
        if not any(needs[:-2]):
            return *(None for _ in maps[:-1]), mixed
        normed = self.kept_of_normed(x, normed, keep, needs)
        between = maps[4:8] if keep == "all" else (None,) * 4
        return *normed, *between, mixed if keep == "all" else None

    def backward(
        self, dproduct: Tensor, x: Tensor | None, tensors: Tensors, maps: Tensors, needs: Needs
    ) -> Tensors:
        normed, rest, inner = Normed(*maps[:4]), maps[4:], any(needs[:-2])
        del maps
        if rest[0] is None and inner:
            rest = self._rest(normed.hidden, tensors)
        qkv, q_norm, k_norm, cosines, mixed = rest
        del rest
        last = self.gradients_of(tensors[-2:], dproduct, mixed, needs[-2:])
        del mixed
        if not inner:
            return *(None for _ in needs[:-2]), *last
        assert x is not None
        weight, bias, temperature = tensors[4:7]
        dmixed = self.gradient_of_mixed(dproduct, tensors)
        dqkv, dtemperature = attention_op.channel_attention_backward(
            dmixed, qkv, temperature, q_norm, k_norm, cosines, self.request["channel_attention"]
        )
        del dmixed, qkv
        dhidden, dweight, dbias = dwconv_op.dwconv_backward(
            dqkv, normed.hidden, weight, bias, self.request["dwconv"]
        )
        del dqkv
        normed = normed._replace(hidden=None)
        first = self.backward_of_normed(dhidden, x, tensors, normed, needs[:5])
        return *first, dweight, dbias, dtemperature, *last

    def _rest(self, hidden: Tensor | None, tensors: Tensors) -> Tensors:
        """q, k and v after their convolution, what the attention keeps of them, and what it gives."""
        qkv = self._convolved(hidden, tensors)
        mixed, q_norm, k_norm, cosines = self._attended(qkv, tensors)
        return qkv, q_norm, k_norm, cosines, mixed

    def _convolved(self, hidden: Tensor | None, tensors: Tensors) -> Tensor:
        return dwconv_op.dwconv(hidden, *tensors[4:6], self.request["dwconv"])

    def _attended(self, qkv: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return attention_op.channel_attention(qkv, tensors[6], self.request["channel_attention"])
