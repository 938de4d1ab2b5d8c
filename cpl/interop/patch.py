"""``cpl.patch``: our kernels inside somebody else's model, in place, with the same parameters and the same results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from torch import nn

from cpl.interop import report
from cpl.interop.comparison import compare
from cpl.interop.layouts import BLOCK, layouts
from cpl.interop.signature import key
from cpl.interop.structure import Layout, Options, PatchedForward
from cpl.nn.block import KEEP

_MARK = "_cpl_patched"
_ALREADY = "it is patched already"


@dataclass(frozen=True)
class Verdict:
    """Why a module is left, or with which options it is taken, and what was compared."""

    why: str | None
    options: Options | None = None
    compared: str = ""


Verdicts = dict[tuple[Layout, Hashable], Verdict]


@dataclass(frozen=True)
class PatchReport:
    """What :func:`patch` did.

    Attributes:
        patched: (name of the module, kind of block).
        left: (name, kind, why) of what looked like a block of ours and was left as it is.
        compared: for each of ``patched``, what its computation and ours were compared on, and how far apart they were.
    """

    patched: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str, str], ...]
    compared: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = Counter(kind for _, kind in self.patched)
        lines = [f"patched: {', '.join(f'{n} x {kind}' for kind, n in counts.items()) or 'nothing'}"]
        lines += self._lines_of_compared()
        return "\n".join(lines + report.lines(self.left))

    def _lines_of_compared(self) -> list[str]:
        """One for each kind of block."""
        kinds: dict[str, list[str]] = {}
        for (_, kind), text in zip(self.patched, self.compared, strict=False):
            if text not in kinds.setdefault(kind, []):
                kinds[kind].append(text)
        return [
            f"compared: {kind}: {texts[0]}{f' and {len(texts) - 1} more of other sizes' * (len(texts) > 1)}"
            for kind, texts in kinds.items()
        ]


def patch(model: nn.Module, keep: str = "all") -> PatchReport:
    """Let the blocks of ``model`` that cpl_kernels has kernels for run on them.

    Found by structure and attribute names, at any depth of any network, below DistributedDataParallel, before or after
    it: layer norms over channels (NAFNet's, ConvNeXt's, Restormer's); the attention, cross attention and feed-forward
    networks of Restormer and of what keeps its names (PromptIR, AdaIR, MoCE-IR); prompt blocks (PromptIR's, or of the k
    best); NAFNet's gated block, and SimpleGate behind a depthwise convolution in nn.Sequential; depthwise convolutions
    of 3x3, 5x5 and 7x7 that none of these computes. A block is taken only
    where nothing but rounding tells its computation and ours apart: results and gradients of a copy, in float64, for
    images of many sizes and scales, with other parameters, in every mode; then in the other dtypes. What a norm adds to
    the variance is measured. :mod:`cpl.interop.comparison` lists it all; it takes a second for each kind of block.

    Modules, parameters, their names, hooks and the state_dict stay what they are: only what ``forward`` computes is
    exchanged, so optimizers, EMA copies, checkpoints and torch.compile go on as before.

    Args:
        model: changed in place. Parameters on "meta" cannot be compared, and are left.
        keep: what transformer blocks (residual halves, x + part(norm(x)), whatever their names) keep for the backward
            pass: "all" that their parts need, the matrix "products", or the "input" alone;
            :class:`cpl.nn.TransformerBlock` says how much that is.

    Returns:
        What was patched, and what was left and why; ``print`` it.

    Raises:
        TypeError: ``model`` is not a torch.nn.Module.
        ValueError: ``keep`` is none of "all", "products", "input".
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    patched: list[tuple[str, str]] = []
    left: list[tuple[str, str, str]] = []
    compared: list[str] = []
    verdicts: Verdicts = {}
    kinds = layouts(keep)
    covered: set[int] = set()  # parts that a block around them computes
    for name, module in list(model.named_modules()):
        if type(module).__module__.startswith("cpl."):  # it is ours
            covered.update(id(part) for part in module.children() if isinstance(part, nn.Conv2d))
            continue
        if id(module) in covered:
            continue
        for kind, (why, text) in _outcomes(module, kinds, verdicts, covered).items():
            if why is None:
                patched.append((name, kind))
                compared.append(text)
            else:
                left.append((name, kind, report.one_line(why)))
    if keep != "all" and not any(kind == BLOCK for _, kind, *_ in (*patched, *left)):
        left.append(("", BLOCK, f'No transformer block was found, so keep="{keep}" has no effect.'))
    return PatchReport(tuple(patched), tuple(left), tuple(compared))


def _outcomes(
    module: nn.Module, kinds: Iterable[Layout], verdicts: Verdicts, covered: set[int]
) -> dict[str, tuple[str | None, str]]:
    """For each kind of block that it looks like: why it is left, or None and what was compared.

    Two layouts of one kind give one outcome: that of the one whose parts the module has, else of the first.
    """
    found: dict[str, tuple[str | None, str]] = {}
    for layout in kinds:
        why, text = layout.why_not(module), ""
        if why == "" or found.get(layout.kind, ("", ""))[0] is None:
            continue
        fits = why is None
        if fits:
            why, text = (_ALREADY, "") if _MARK in vars(module) else _take(module, layout, verdicts)
        if fits or layout.kind not in found:
            found[layout.kind] = why, text
        forward = vars(module).get("forward")
        if isinstance(forward, PatchedForward) and forward.forward is layout.forward:
            covered.update(map(id, layout.covers(module)))
    return found


def unpatch(model: nn.Module) -> int:
    """Undo :func:`patch`; returns how many modules compute as their class says again."""
    count = 0
    for module in model.modules():
        if _MARK not in vars(module):
            continue
        before = vars(module).pop(_MARK)
        del module.forward
        if before is not None:
            module.forward = before
        count += 1
    return count


def _take(module: nn.Module, layout: Layout, verdicts: Verdicts) -> tuple[str | None, str]:
    """Exchange the module's forward, or say why not; also what was compared."""
    name = (layout, key(module))
    if name not in verdicts:
        verdicts[name] = verdict = _judge(module, layout, None)
    else:
        verdict = verdicts[name]
        if verdict.options is not None:
            verdict = _judge(module, layout, verdict.options)
    if verdict.options is None:
        return verdict.why, ""
    setattr(module, _MARK, vars(module).get("forward"))
    module.forward = PatchedForward(module, layout, verdict.options)
    return None, verdicts[name].compared


def _judge(module: nn.Module, layout: Layout, known: Options | None) -> Verdict:
    """Try every choice that the layout leaves, or the ``known`` one of a module with the same signature."""
    first: Verdict | None = None
    try:
        for options in layout.options(module) if known is None else (known,):
            few = known is not None or layout.certain
            found = [compare(part, layout, options, few) for part in layout.compared(module)]
            why = next((one.why for one in found if one.why is not None), None)
            if why is None:
                return Verdict(None, options, str(found[0]))
            first = first or Verdict(why)
    except Exception as error:
        return Verdict(f"it could not be tried: {type(error).__name__}: {error}")
    return first or Verdict("there is nothing to compare")
