"""info_nce in CUDA C++ for CUDA tensors (csrc/info_nce/cuda.cu), without tensor cores: for parity and small sizes.

The kernels leave sums of a strip of the matrix, or a strip of its gradient, which torch multiplies by keys and
queries in fp32; so the whole matrix is never there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.core import DTYPE_CODES, core, stream_of
from cpl_kernels.info_nce import compiled, tiled
from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Place, Side, Span, Sums


def why_not(query: Tensor) -> str | None:
    return None


def forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tiled.forward(CudaTiles, query, *args)


def backward(dloss: Tensor, query: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tiled.backward(CudaTiles, dloss, query, *args)


class CudaTiles:
    """Strips of the matrix; each is a launch of many blocks, and a second one that adds up what they leave.

    Scratch memory is held until the launches are made: the allocator keeps it for work on this stream.
    """

    row_step, column_step = 1024, 8192  # 32 MiB of gradients in fp32
    multiple = 1

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype) -> None:
        self._temperature, self._given = temperature, given
        self.scale = 1 / temperature.double()
        self.dscale = torch.zeros(len(query), dtype=torch.float64, device=query.device)

    @staticmethod
    def operand(x: Tensor) -> Tensor:
        return x.contiguous()

    def factor(self, operand: Tensor) -> Tensor:
        return operand.to(wide(self._given))

    put_product = staticmethod(tiled.put_product)

    def add(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        rows: Sums,
        columns: Sums | None,
        positives: Positives | None,
    ) -> None:
        scratch = self._scratch(place)
        core().info_nce_sums_cuda(
            self._args(query, key, place),
            compiled.positives(positives),
            compiled.sums(rows),
            compiled.sums(columns),
            scratch.data_ptr(),
            stream_of(query),
        )

    def finish(self, sums: Sums, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return sums.finish(count, self._temperature, dtype)

    reduce = staticmethod(tiled.reduce)

    def side(
        self, sums: Tensor | None, dloss: Tensor, count: Tensor, reduction: str, dtype: torch.dtype
    ) -> Side:
        return tiled.side(self.scale, sums, dloss, count, reduction, dtype)

    def gradient(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        positives: Positives | None,
        rows: Side,
        columns: Side | None,
    ) -> Tensor:
        scratch = self._scratch(place)
        gradient = scratch.new_empty(_length(place.rows), _length(place.columns))
        core().info_nce_gradient_cuda(
            self._args(query, key, place),
            compiled.positives(positives),
            compiled.side(rows),
            compiled.side(columns),
            gradient.data_ptr(),
            self.dscale.data_ptr(),
            scratch.data_ptr(),
            stream_of(query),
        )
        return gradient

    def _scratch(self, place: Place) -> Tensor:
        return self._temperature.new_empty(
            core().info_nce_scratch(_length(place.rows), _length(place.columns))
        )

    def _args(
        self, query: Tensor, key: Tensor, place: Place
    ) -> tuple[int, int, int, int, int, int, int, int, bool, int]:
        return (
            query.data_ptr(),
            key.data_ptr(),
            self._temperature.data_ptr(),
            query.shape[1],
            place.rows.first,
            _length(place.rows),
            place.columns.first,
            _length(place.columns),
            place.without_diagonal,
            DTYPE_CODES[query.dtype],
        )


def _length(span: Span) -> int:
    return span.end - span.first
