"""The losses of docs/moving_over.md against the packages that it speaks of: equal values and gradients.

pytorch-metric-learning is installed for development. lightly wants a torchvision that fits, so it is not; where it
is there (``pip install --no-deps lightly``) its loss is loaded without the rest of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cpl.losses import InfoNCELoss, NTXentLoss, SupConLoss

MISSING = "pytorch-metric-learning is not installed: pip install pytorch-metric-learning"


@pytest.fixture
def pml() -> Any:
    return pytest.importorskip("pytorch_metric_learning.losses", reason=MISSING)


@pytest.fixture
def lightly_ntxent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """lightly's class from its own file; its packages' __init__ would import torchvision."""
    found = importlib.util.find_spec("lightly")
    if found is None:
        pytest.skip(reason="lightly is not installed: pip install --no-deps lightly")
    root = next(iter(found.submodule_search_locations or []))
    for name in ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules", "lightly.utils"):
        package = ModuleType(name)
        package.__path__ = [root + name.removeprefix("lightly").replace(".", "/")]
        monkeypatch.setitem(sys.modules, name, package)
    # The memory bank imports it, and it imports torchvision; neither is used here.
    monkeypatch.setitem(sys.modules, "lightly.models.utils", ModuleType("lightly.models.utils"))
    sys.modules["lightly.models"].utils = sys.modules["lightly.models.utils"]  # type: ignore[attr-defined]
    yield importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss
    for name in [name for name in sys.modules if name.startswith("lightly.")]:
        monkeypatch.delitem(sys.modules, name)


def views(count: int = 2, images: int = 12) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, 16, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(count)
    ]


def same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    values = [loss(*leaves) for loss in (ours, theirs)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)
    for mine, other in zip(*(torch.autograd.grad(v, leaves) for v in values), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-12)


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4, 4, 2, 0, 5])  # classes of several, and of one


def test_ntxent_of_two_views(pml: Any) -> None:
    theirs = pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=0.2))
    same(NTXentLoss(temperature=0.2), theirs, views())


def test_ntxent_against_references(pml: Any) -> None:
    theirs = pml.SelfSupervisedLoss(pml.NTXentLoss(), symmetric=False)
    same(InfoNCELoss(temperature=0.07), theirs, views())


def test_supcon(pml: Any) -> None:
    same(lambda z: SupConLoss()(z, LABELS), lambda z: pml.SupConLoss()(z, LABELS), views(1))


def test_supcon_against_references(pml: Any) -> None:
    ref_labels = LABELS.flip(0) % 5
    same(
        lambda z, r: SupConLoss(0.3)(z, LABELS, r, ref_labels),
        lambda z, r: pml.SupConLoss(0.3)(z, LABELS, ref_emb=r, ref_labels=ref_labels),
        views(),
    )


def test_ntxent_with_several_positives_is_another_loss(pml: Any) -> None:
    """pytorch-metric-learning leaves the other positives out of each sum; SupCon's form has them in."""
    (z,) = views(1)
    assert not torch.isclose(SupConLoss(0.07)(z, LABELS), pml.NTXentLoss(0.07)(z, LABELS), rtol=1e-3)


def test_lightly_ntxent(lightly_ntxent: Any) -> None:
    same(NTXentLoss(), lightly_ntxent(), views())
    same(NTXentLoss(temperature=0.1), lightly_ntxent(temperature=0.1), views())


def test_lightly_memory_bank(lightly_ntxent: Any) -> None:
    """It compares a query with its own key and the bank; ours with the batch's other keys too, as they are there."""
    query, key = views()
    theirs = lightly_ntxent(temperature=0.2, memory_bank_size=(8, 16))
    bank = theirs.memory_bank.bank.double().clone()  # [Q, D]
    theirs.memory_bank.bank = theirs.memory_bank.bank.double()
    each = [InfoNCELoss(0.2)(query[i : i + 1], key[i : i + 1], queue=bank) for i in range(len(query))]
    torch.testing.assert_close(torch.stack(each).mean(), theirs(query, key.detach()))
