"""Which backend a call gets when nobody names one: a table whose rows cite their measurements.

A row holds for an op (or one variant of it) on a device family, for some dtypes and size classes, and says in which
order the backends are tried and in which results file that order was measured. Where no row holds, the reference
runs: a fast backend that was never measured on a kind of device is not its default, however fast it
ought to be. tests/kernels/test_dispatch.py compares every row with the file that it cites.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

# Least number of elements of a call's largest tensor. The borders lie where the cost of a call stops being
# that of Python and launches (small), and where its tensors leave a core's own caches (large).
SIZES = {"small": 0, "medium": 2**14, "large": 2**20}
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Kernels of one op that were measured one by one: what is said of one holds of no other.
VARIANTS = {"dwconv": ("3x3", "5x5", "7x7"), "pointwise_conv": ("planar", "channels-last")}


@dataclass(frozen=True)
class Row:
    """``order``: the backends to try, best first; ``evidence``: the results file it was measured in; ``variant``: one
    of the op's VARIANTS, "" for an op without any."""

    op: str
    family: str
    dtypes: tuple[str, ...]
    sizes: tuple[str, ...]
    order: tuple[str, ...]
    evidence: str
    variant: str = ""


_EVERY_SIZE = tuple(SIZES)
_NATIVE = ("native", "reference")

_MEASURED_ON_CPU = (
    "layer_norm2d",
    "gated_dwconv",
    "channel_attention",
    "route_topk",
    "route_negatives",
    "aggregate_prompts",
    "info_nce",
)

_CPU_EVIDENCE = "benchmarks/results/cpu_dispatch.json"
_CPU_DWCONV_EVIDENCE = "benchmarks/results/cpu_dispatch_dwconv.json"
_CPU_POINTWISE_EVIDENCE = "benchmarks/results/cpu_dispatch_pointwise_conv.json"
_H200_EVIDENCE = "benchmarks/results/h200_dispatch.json"
# A page: 1x1 convolutions were measured there before benchmarks.dispatch knew the op.
_H200_POINTWISE_EVIDENCE = "benchmarks/results/h200_tuning.md"
# Both are torch's own there, as on Hopper.
_BY_ANALOGY = f"by analogy with sm_90: {_H200_POINTWISE_EVIDENCE}"
_FUSED_ON_H200 = (
    "layer_norm2d",
    "gated_dwconv",
    "channel_attention",
    "aggregate_prompts",
    "feature_distances",
)
_FP64 = ("float64",)
_TO_32_BITS = ("float32", "bfloat16", "float16")
_CUDA, _CUDA_TRITON, _TRITON_CUDA = (
    (*fused, "reference") for fused in (("cuda",), ("cuda", "triton"), ("triton", "cuda"))
)


def _on_h200(
    op: str, dtypes: tuple[str, ...], sizes: tuple[str, ...], order: tuple[str, ...], variant: str = ""
) -> Row:
    return Row(op, "sm_90", dtypes, sizes, order, _H200_EVIDENCE, variant)


TABLE = (
    *(_on_h200(op, _TO_32_BITS, _EVERY_SIZE, _CUDA_TRITON) for op in _FUSED_ON_H200),
    *(_on_h200(op, _FP64, _EVERY_SIZE, _CUDA) for op in (*_FUSED_ON_H200, "route_topk", "route_negatives")),
    # 5x5 and 7x7 have kernels of their own, which no GPU has measured: there the reference stays.
    _on_h200("dwconv", ("bfloat16", "float16"), _EVERY_SIZE, _CUDA, "3x3"),
    _on_h200("dwconv", ("float32", "float64"), ("large",), _CUDA, "3x3"),
    _on_h200("dwconv", ("float32", "float64"), ("small", "medium"), ("reference",), "3x3"),
    _on_h200("route_topk", _TO_32_BITS, ("small", "medium"), _CUDA_TRITON),
    _on_h200("route_topk", _TO_32_BITS, ("large",), _TRITON_CUDA),
    _on_h200("route_negatives", _TO_32_BITS, ("small",), _CUDA_TRITON),
    _on_h200("route_negatives", _TO_32_BITS, ("medium", "large"), _TRITON_CUDA),
    # Without the matrix it is slower, but where tensor cores multiply and the matrix is large.
    _on_h200("info_nce", ("bfloat16", "float16"), ("large",), ("triton", "reference")),
    _on_h200("info_nce", ("bfloat16", "float16"), ("small", "medium"), ("reference",)),
    _on_h200("info_nce", ("float32", "float64"), _EVERY_SIZE, ("reference",)),
    *(
        Row("pointwise_conv", family, ("bfloat16", "float16"), _EVERY_SIZE, _CUDA, _BY_ANALOGY, "planar")
        for family in ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_100", "sm_103", "sm_120", "sm_121")
    ),
    Row(
        "pointwise_conv",
        "sm_90",
        ("bfloat16", "float16"),
        _EVERY_SIZE,
        _CUDA,
        _H200_POINTWISE_EVIDENCE,
        "planar",
    ),
    *(Row(op, "cpu", DTYPES, _EVERY_SIZE, _NATIVE, _CPU_EVIDENCE) for op in _MEASURED_ON_CPU),
    *(
        Row("dwconv", "cpu", DTYPES, _EVERY_SIZE, _NATIVE, _CPU_DWCONV_EVIDENCE, kernel)
        for kernel in VARIANTS["dwconv"]
    ),
    Row("pointwise_conv", "cpu", DTYPES, _EVERY_SIZE, _NATIVE, _CPU_POINTWISE_EVIDENCE, "planar"),
    # torch's convolution walks channels-last images as they are; in float16 it has no kernel worth the name.
    Row(
        "pointwise_conv", "cpu", ("float16",), _EVERY_SIZE, _NATIVE, _CPU_POINTWISE_EVIDENCE, "channels-last"
    ),
    Row(
        "pointwise_conv",
        "cpu",
        ("float32", "bfloat16", "float64"),
        _EVERY_SIZE,
        ("reference",),
        _CPU_POINTWISE_EVIDENCE,
        "channels-last",
    ),
    # In float16 the compiler converts element by element, and large calls lose.
    Row("feature_distances", "cpu", ("float32", "bfloat16", "float64"), _EVERY_SIZE, _NATIVE, _CPU_EVIDENCE),
    Row("feature_distances", "cpu", ("float16",), ("small", "medium"), _NATIVE, _CPU_EVIDENCE),
    Row("feature_distances", "cpu", ("float16",), ("large",), ("reference",), _CPU_EVIDENCE),
)

UNMEASURED = "the safe choice: no measurement yet"


def size_class(elements: int) -> str:
    """The name of the size class of a call whose largest tensor has so many elements."""
    return next(name for name in reversed(SIZES) if elements >= SIZES[name])


def family(device: torch.device) -> str:
    """What devices are told apart by: "cpu", "sm_90" for an NVIDIA GPU, "gfx942" for an AMD one, else the type."""
    return _gpu_family(device.index) if device.type == "cuda" else device.type


@functools.cache
def _gpu_family(index: int | None) -> str:
    if not torch.cuda.is_available():
        return "cuda"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def row(op: str, family: str, dtype: str, size: str, variant: str = "") -> Row | None:
    """The row of the table that holds, or None where nothing was measured."""
    for candidate in TABLE:
        if (
            (candidate.op, candidate.family, candidate.variant) == (op, family, variant)
            and dtype in candidate.dtypes
            and size in candidate.sizes
        ):
            return candidate
    return None


def order(op: str, tensors: tuple[torch.Tensor, ...], variant: str = "") -> tuple[str, ...]:
    """The backends to try for this call, best first."""
    first = tensors[0]
    return _order(op, first.device, first.dtype, max([x.numel() for x in tensors]).bit_length(), variant)


@functools.cache
def _order(op: str, device: torch.device, dtype: torch.dtype, bits: int, variant: str) -> tuple[str, ...]:
    """``bits``: bit length of the number of elements, enough as the size classes begin at powers of two."""
    size = size_class(1 << (bits - 1) if bits else 0)
    found = row(op, family(device), str(dtype).removeprefix("torch."), size, variant)
    return ("reference",) if found is None else found.order


def describe(op: str, family: str) -> list[tuple[str, tuple[str, ...], str]]:
    """What the table says of an op on a device family: ``(where it holds, order, why)``; "" holds everywhere."""
    variants = VARIANTS.get(op, ("",))
    groups: dict[tuple[tuple[str, ...], str], dict[str, dict[str, list[str]]]] = {}
    for variant in variants:
        for dtype in DTYPES:
            for size in SIZES:
                found = row(op, family, dtype, size, variant)
                key = (("reference",), UNMEASURED) if found is None else (found.order, found.evidence)
                groups.setdefault(key, {}).setdefault(variant, {}).setdefault(dtype, []).append(size)
    return [("; ".join(_of_variants(where, variants)), order, why) for (order, why), where in groups.items()]


def _of_variants(where: dict[str, dict[str, list[str]]], variants: tuple[str, ...]) -> list[str]:
    """A text for variants of which the same holds; nothing for what holds everywhere."""
    everything = {dtype: list(SIZES) for dtype in DTYPES}
    by_text: dict[str, list[str]] = {}
    for variant, dtypes in where.items():
        by_text.setdefault("" if dtypes == everything else "; ".join(_where(dtypes)), []).append(variant)
    return [
        " ".join(filter(None, ("" if tuple(names) == variants else ", ".join(names), text)))
        for text, names in by_text.items()
        if text or tuple(names) != variants
    ]


def _where(where: dict[str, list[str]]) -> list[str]:
    by_sizes: dict[tuple[str, ...], list[str]] = {}
    for dtype, sizes in where.items():
        by_sizes.setdefault(tuple(sizes), []).append(dtype)
    return [
        f"{', '.join(dtypes)}{'' if sizes == tuple(SIZES) else ' ' + ', '.join(sizes)}"
        for sizes, dtypes in by_sizes.items()
    ]
