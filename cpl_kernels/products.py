"""Products of matrices on the processor's matrix units (csrc/products), for backends on CPU tensors.

fp32 factors go in three bf16 pieces each: the result is as near to the exact one as torch's product in fp32 is. Factors
whose numbers are bf16 ones go in one piece. Sums are in fp32 either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cpl_kernels import core

PANEL = 32  # rows or columns of a factor that stay together: a part must begin between two panels
PIECES = {torch.float32: 3, torch.float16: 3, torch.bfloat16: 1}  # by the dtype that the numbers came in
_STEP_BYTES = 2 * 1024  # of a piece of PANEL x PANEL numbers


def available() -> bool:
    """Whether this process may use matrix units: an Intel processor since Sapphire Rapids, Linux, and CPL_ISA."""
    return core.available() and core.core().isa() == "amx"


@dataclass(frozen=True)
class Right:
    """A right factor, or neighbouring rows and columns of one, in pieces.

    Attributes:
        plain: the numbers, [K, N] fp32, one of whose strides is 1.
        packed: the memory of all pieces; None if a number is NaN or not below 2^63 (products of pieces could be
            infinite, where that of the numbers is not), or if the part begins within a panel. There is no product then.
        address, steps, pieces: of the part, as the core takes them.
    """

    plain: Tensor
    packed: Tensor | None
    address: int
    steps: int
    pieces: int

    @classmethod
    def of(cls, plain: Tensor, pieces: int, memory: Callable[[int], Tensor]) -> Right:
        """``memory`` gives bytes by their number, from a multiple of 64 on."""
        packed = memory(core.core().products_packed_bytes(*plain.shape, pieces))
        address = packed.data_ptr()
        has_pieces = core.core().products_pack(plain_args(plain), pieces, address, torch.get_num_threads())
        return cls(plain, packed if has_pieces else None, address, -(-plain.shape[0] // PANEL), pieces)

    def part(self, rows: slice, columns: slice = slice(None)) -> Right:
        first_row, first_column = rows.indices(len(self.plain))[0], columns.indices(self.plain.shape[1])[0]
        between = first_row % PANEL == 0 and first_column % PANEL == 0
        steps = first_column // PANEL * self.steps + first_row // PANEL
        address = self.address + steps * self.pieces * _STEP_BYTES
        return Right(
            self.plain[rows, columns], self.packed if between else None, address, self.steps, self.pieces
        )

    @property
    def args(self) -> tuple[int, int, int]:
        """As the core takes it."""
        return self.address, self.steps, self.pieces

    def multiply(self, left: Tensor, out: Tensor, add: bool = False, above_diagonal: bool = False) -> None:
        """out = left @ self, or out += left @ self. A row of ``left`` in which a number has no pieces is of no use.

        Args:
            left: [B, K] fp32, one of its strides 1.
            out: [B, N] fp32, its columns side by side.
            above_diagonal: blocks of PANEL x PANEL results below the diagonal may stay as they are.
        """
        assert self.packed is not None
        core.core().products_multiply(
            out.data_ptr(),
            out.stride(0),
            add,
            plain_args(left),
            self.args,
            self.plain.shape[1],
            above_diagonal,
            torch.get_num_threads(),
        )


def have_pieces(matrix: Tensor) -> bool:
    """Whether all numbers of a matrix, [N, K] fp32, have pieces (see Right.packed)."""
    have: bool = core.core().products_have_pieces(plain_args(matrix), torch.get_num_threads())
    return have


def plain_args(x: Tensor) -> tuple[int, int, int, int, int]:
    """A matrix as the core takes it."""
    assert x.dtype == torch.float32, x.dtype
    assert 1 in x.stride() or not x.numel(), x.stride()
    return (x.data_ptr(), x.shape[0], x.shape[1], x.stride(0), x.stride(1))
