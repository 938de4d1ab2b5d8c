"""What the routers chose is what was used, and it is read in every way of restoring."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cpl
from cpl.errors import CplError
from cpl.inference.routing import force_prompts, watch_routing
from cpl.models.restorer import Restorer
from cpl_kernels import route_topk


def network(**settings: object) -> Restorer:
    torch.manual_seed(0)
    return cpl.create_model("cplir-tiny", **settings).eval()


def test_choices_are_those_of_the_network() -> None:
    model, x = network(top_k=2), torch.rand(2, 3, 24, 32)
    seen: dict[int, torch.Tensor] = {}
    for level in (1, 2, 3):
        module = getattr(model, f"prompt{level}")
        module.register_forward_pre_hook(lambda m, args: seen.__setitem__(m.level, m.logits(args[0])))
    with torch.no_grad(), watch_routing(model) as routing:
        model(x)
    images = routing.choices()
    assert [[c.level for c in choices] for choices in images] == [[1, 2, 3], [1, 2, 3]]
    for b, choices in enumerate(images):
        for choice in choices:
            weights, indices = route_topk(seen[choice.level], 2)
            assert choice.chosen == tuple(indices[b].tolist())
            assert choice.weights == tuple(weights[b].tolist())
            assert sum(choice.shares) == pytest.approx(1)
            assert choice.weights[0] == pytest.approx(choice.shares[choice.chosen[0]], rel=1e-6)
            assert choice.shares[choice.chosen[0]] == max(choice.shares)


def test_the_mean_is_summed_in_float64() -> None:
    module = network().prompt1
    channels = module.linear_layer.in_features
    # Rows that float32 adds up exactly, and a total that it cannot hold: even a pairwise sum of the rows would round.
    x = (4096 * torch.rand(1, channels, 257, 512)).floor()
    exact = x.long().sum((2, 3))
    assert torch.equal(module.total(x), exact.double())
    assert torch.equal(module.mean(x), (exact.double() / (257 * 512)).float())
    assert not torch.equal(x.mean((2, 3)), module.mean(x))
    assert torch.equal(module.total(x[:, :, :100]) + module.total(x[:, :, 100:]), exact.double())


def test_the_mean_in_float16_does_not_overflow_on_the_way() -> None:
    module = network().prompt1.half()
    x = torch.full((1, module.linear_layer.in_features, 16, 512), 200.0, dtype=torch.float16)
    assert torch.equal(module.mean(x), x[:, :, 0, 0])  # a row of it adds up to 102400, and fp16 ends at 65504


def test_window_by_window_is_read_too() -> None:
    model, x = network(), torch.rand(3, 48, 40)
    with watch_routing(model) as at_once:
        cpl.restore(model, x)
    with watch_routing(model) as in_windows:
        cpl.restore(model, x, memory="1GB")
    (first,), (second,) = at_once.choices(), in_windows.choices()
    for a, b in zip(first, second, strict=True):
        assert (a.level, a.chosen) == (b.level, b.chosen)
        assert a.shares == pytest.approx(b.shares, abs=1e-5)


def test_negatives_are_not_noted_and_watching_changes_nothing() -> None:
    model, x = network(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        plain, _ = model.forward_with_negatives(x, 2, seed=1)
        with watch_routing(model) as routing:
            watched, _ = model.forward_with_negatives(x, 2, seed=1)
        assert torch.equal(plain, watched)
        assert len(routing.choices()) == 1
        model(x)  # not watched any more
    assert len(routing.choices()) == 1


def test_an_error_ends_the_watching() -> None:
    model = network()
    with pytest.raises(KeyError), watch_routing(model):
        raise KeyError
    with (
        watch_routing(model) as routing,
        pytest.raises(RuntimeError, match="watched already"),
        watch_routing(model),
    ):
        pass
    assert routing.choices() == []
    assert all(getattr(model, f"prompt{level}").watcher is None for level in (1, 2, 3))


def test_without_prompts_there_is_nothing_to_watch() -> None:
    for model, word in ((nn.Identity(), "Identity"), (cpl.create_model("restormer", dim=8), "restormer")):
        with pytest.raises(CplError, match=f"{word} has no prompts"), watch_routing(model):
            pass


def test_forced_prompts_are_what_images_get() -> None:
    model, x = network(), torch.rand(3, 3, 24, 32)
    with torch.no_grad(), force_prompts(model, [4, 0, 2]), watch_routing(model) as routing:
        together = model(x)
        one_by_one = []
        for image, prompt in zip(x, (4, 0, 2), strict=True):
            for level in (1, 2, 3):
                getattr(model, f"prompt{level}").forced = torch.tensor([prompt])
            one_by_one.append(model(image[None]))
    chosen = [[c.chosen for c in choices] for choices in routing.choices()]
    assert chosen == [[(prompt,)] * 3 for prompt in (4, 0, 2, 4, 0, 2)]
    assert all(c.weights == (1.0,) for choices in routing.choices() for c in choices)
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(together, model(x), atol=1e-6)  # and outside the block the routers choose


def test_forced_prompts_hold_at_the_levels_asked_for() -> None:
    model, x = network(), torch.rand(1, 3, 24, 32)
    with torch.no_grad(), watch_routing(model) as routing:
        model(x)
        free = {c.level: c.chosen[0] for c in routing.choices()[0]}
        other = (free[2] + 1) % 5
        with force_prompts(model, other, levels=(2,)):
            model(x)
    seen = {c.level: c.chosen[0] for c in routing.choices()[1]}
    assert seen[2] == other
    assert seen[3] == free[3]


def test_negatives_of_forced_prompts_are_others() -> None:
    """With two prompts only one is left."""
    model, x = network(num_prompts=2, negative_weights="positive"), torch.rand(2, 3, 16, 16)
    with force_prompts(model, [0, 1]):
        restored, negatives = model.forward_with_negatives(x, 2, seed=0)
    with torch.no_grad(), force_prompts(model, [1, 0]):
        swapped = model(x)
    for negative in negatives:
        torch.testing.assert_close(negative, swapped, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(restored, swapped, atol=1e-6)


def test_forced_prompts_reach_windows_and_tiles() -> None:
    model, image = network(), torch.rand(3, 136, 120)
    with force_prompts(model, 3):
        for options in ({}, {"memory": "1GB"}, {"tile": 96, "overlap": 32}):
            with watch_routing(model) as routing:
                cpl.restore(model, image, **options)
            assert {c.chosen for choices in routing.choices() for c in choices} == {(3,)}, options


@pytest.mark.parametrize(
    ("prompts", "message"), [(5, "0 to 4"), ([0, -1], "0 to 4"), (0.5, "indices"), ([], "indices")]
)
def test_forced_prompts_that_cannot_be(prompts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message), force_prompts(network(), prompts):  # type: ignore[arg-type]
        pass


def test_forcing_needs_one_prompt_an_image_and_nobody_else_at_it() -> None:
    with pytest.raises(CplError, match="takes 2 prompts"), force_prompts(network(top_k=2), 0):
        pass
    with pytest.raises(ValueError, match="levels"), force_prompts(network(), 0, levels=(4,)):
        pass
    model = network()
    with force_prompts(model, 0), pytest.raises(RuntimeError, match="already"), force_prompts(model, 1):
        pass
    with force_prompts(model, [0, 1]), pytest.raises(ValueError, match="2 forced prompts.*4 images"):
        model(torch.rand(4, 3, 8, 8))
