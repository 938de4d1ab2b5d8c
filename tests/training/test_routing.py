"""What a run says of its routers."""

from __future__ import annotations

import pytest
import torch

from cpl.inference.routing import information, mutual_information, watch_routing
from cpl.losses import RoutingLoss
from cpl.models import create_model
from cpl.training.routing import RoutingMeter, flat
from cpl.training.step import TrainingStep


def test_information_of_a_known_table() -> None:
    assert mutual_information(torch.eye(4)) == pytest.approx(2)  # bits
    assert mutual_information(torch.ones(4, 4)) == pytest.approx(0)
    assert mutual_information(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])) == pytest.approx(1)


def test_information_is_a_part_of_what_the_choice_could_tell() -> None:
    assert information(1000 * torch.eye(5)) == pytest.approx(1, abs=0.01)
    two_of_four = 1000 * torch.tensor(
        [[1.0, 0], [1, 0], [0, 1], [0, 1]]
    )  # all that two prompts can tell of four tasks
    assert information(two_of_four) == pytest.approx(1, abs=0.01)
    assert information(torch.full((4, 4), 250.0)) == 0
    rng = torch.Generator().manual_seed(0)
    by_chance = [
        information(torch.bincount(torch.randint(25, (50,), generator=rng), minlength=25).view(5, 5).float())
        for _ in range(50)
    ]
    assert sum(value or 0 for value in by_chance) / 50 < 0.05
    assert information(torch.tensor([[3.0, 4.0]])) is None


def test_a_meter_tells_choosing_from_flat() -> None:
    tasks = torch.arange(5).repeat(40)
    meter = RoutingMeter(5)
    by_task = 3.0 * torch.nn.functional.one_hot(tasks, 5).float()
    meter.add({3: by_task, 1: torch.randn(200, 5, generator=torch.Generator().manual_seed(0))}, tasks)
    figures = meter.take()
    assert figures["routing/information3"] == pytest.approx(1, abs=0.03)
    assert figures["routing/information1"] < 0.03
    assert sum(figures[f"routing/share3/{n}"] for n in range(5)) == pytest.approx(1)
    assert flat(figures) is False
    assert meter.take() == {}  # it begins anew
    meter.add({3: torch.zeros(200, 5)}, tasks)
    held = meter.state()
    assert flat(meter.take()) is True
    other = RoutingMeter(5)
    other.load(held)
    assert flat(other.take()) is True
    meter.add({3: torch.zeros(20, 5)}, tasks[:20])
    assert flat(meter.take()) is None  # too few to say


def test_one_task_has_nothing_to_tell() -> None:
    meter = RoutingMeter(1)
    meter.add({1: torch.zeros(4, 5)}, torch.zeros(4, dtype=torch.int64))
    figures = meter.take()
    assert not any("information" in name for name in figures)
    assert flat(figures) is None


@pytest.mark.parametrize("normalize", ["none", "straight_through"])
def test_a_step_reaches_the_routers(normalize: str) -> None:
    """By the restored image, whatever weight the chosen prompt has, and by the routing loss."""
    torch.manual_seed(0)
    model = create_model("cplir-tiny", normalize=normalize)
    x = torch.rand(2, 3, 16, 16)
    router = model.prompt3.linear_layer.weight

    def gradient(routing: RoutingLoss | None) -> torch.Tensor:
        model.zero_grad()
        output = TrainingStep(model, routing=routing)(x, x.flip(0), 0, tasks=torch.tensor([0, 1]))
        output.loss.backward()
        assert set(output.logits) == {1, 2, 3}
        assert not any(values.requires_grad for values in output.logits.values())
        assert router.grad is not None
        return router.grad.clone()

    alone, both = gradient(None), gradient(RoutingLoss(task=1.0))
    assert alone.abs().max() > 0
    assert not torch.allclose(alone, both)
    assert all(getattr(model, f"prompt{level}").watcher is None for level in (1, 2, 3))


def test_a_step_leaves_watchers_as_they_were() -> None:
    model = create_model("cplir-tiny")
    x = torch.rand(1, 3, 8, 8)
    with watch_routing(model) as routing:
        TrainingStep(model)(x, x, 0)
        TrainingStep(model)(x, x, 0)
    assert len(routing.choices()) == 2
    with pytest.raises(ValueError, match="need the images' tasks"):
        TrainingStep(model, routing=RoutingLoss(task=1.0))(x, x, 0)


def test_a_teacher_chooses_and_the_router_learns_from_labels_alone() -> None:
    torch.manual_seed(0)
    model = create_model("cplir-tiny", normalize="straight_through")
    x, target = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    tasks = torch.tensor([4, 1])
    router = model.prompt2.linear_layer.weight

    def step(weight: float) -> torch.Tensor:
        model.zero_grad()
        with watch_routing(model) as routing:
            output = TrainingStep(model, routing=RoutingLoss(task=weight), teacher=True)(
                x, target, 0, tasks=tasks
            )
        assert [[choice.chosen for choice in image] for image in routing.choices()] == [
            [(4,)] * 3,
            [(1,)] * 3,
        ]
        output.loss.backward()
        for level in (1, 2, 3):  # the prompts of these tasks learn, and no others
            grad = getattr(model, f"prompt{level}").prompt_param.grad
            assert [bool(grad[0, n].any()) for n in range(5)] == [False, True, False, False, True]
        assert not torch.equal(output.logits[2].argmax(1), tasks)  # it says what it thinks
        assert router.grad is not None
        return router.grad.clone()

    torch.testing.assert_close(step(2.0), 2 * step(1.0), rtol=1e-4, atol=1e-9)
    assert all(getattr(model, f"prompt{level}").forced is None for level in (1, 2, 3))
