"""Negatives: wrong prompts for the same image, at a fraction of running the network again."""

from __future__ import annotations

import pytest
import torch

import cpl
import cpl.nn.prompt
from cpl_kernels import aggregate_prompts, route_topk

K, B = 3, 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = cpl.create_model("cplir-tiny", num_prompts=6, top_k=2)
    with torch.no_grad():
        for level in (1, 2, 3):  # a larger pool makes prompts matter, larger logits make routes differ
            getattr(made, f"prompt{level}").prompt_param.mul_(4)
            getattr(made, f"prompt{level}").linear_layer.weight.mul_(30)
    return made


@pytest.fixture
def x():
    return torch.rand(B, 3, 16, 11, generator=torch.Generator().manual_seed(1))


def seeded(value: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(value)


@pytest.fixture
def routes(monkeypatch):
    """Every call of route_negatives from the model: (logits [rows, N], weights, indices [rows, k])."""
    calls = []
    route = cpl.nn.prompt.route_negatives

    def recorded(logits, k, *args, **kwargs):
        weights, indices = route(logits, k, *args, **kwargs)
        calls.append((logits, weights[0], indices[0]))
        return weights, indices

    monkeypatch.setattr(cpl.nn.prompt, "route_negatives", recorded)
    return calls


def test_restored_is_the_forward_pass_bit_for_bit(model, x):
    restored, negatives = model.forward_with_negatives(x, K, seeded())
    assert torch.equal(restored, model(x))
    assert negatives.shape == (K, B, 3, 16, 11)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model.eval().forward_with_negatives(x, K)[0])


def test_negatives_differ_from_restored_and_from_one_another(model, x):
    restored, negatives = model.forward_with_negatives(x, K, seeded())
    assert ((negatives - restored).abs().amax((2, 3, 4)) > 1e-4).all()
    assert (negatives[0] - negatives[1]).abs().max() > 1e-4


def test_negatives_never_use_a_chosen_prompt(model, x, routes):
    for seed in range(10):
        model.forward_with_negatives(x, K, seeded(seed))
    assert len(routes) == 30  # three levels each
    for logits, _, indices in routes:
        _, chosen = route_topk(logits, 2)
        assert indices.shape == (K * B, 2)
        assert not (indices.unsqueeze(2) == chosen.unsqueeze(1)).any()
        assert (indices[:, 0] != indices[:, 1]).all()


def test_draws_differ_between_levels_rows_and_seeds(model, x, routes):
    """With routers that say the same of every image, whatever differs comes from the draw."""
    with torch.no_grad():
        for level in (1, 2, 3):
            router = getattr(model, f"prompt{level}").linear_layer
            router.weight.zero_()
            router.bias.copy_(torch.tensor([2.0, 1, 0, 0, 0, 0]))
    for seed in range(20):
        model.forward_with_negatives(x, K, seeded(seed))
    draws = torch.stack([indices for _, _, indices in routes]).unflatten(0, (20, 3))  # [seed, level, row, k]
    assert draws.unique().tolist() == [2, 3, 4, 5]
    for one, other in (
        (draws[:, 0], draws[:, 1]),
        (draws[:, 0], draws[:, 2]),
        (draws[:, 1], draws[:, 2]),
        (draws[:, :, 0], draws[:, :, 1]),  # two images
        (draws[:, :, 0], draws[:, :, B]),  # two negatives of the same image
        (draws[:10], draws[10:]),
    ):
        # Chance: 1/4 in each place. 0.5 is more than five standard deviations off in the smallest of
        # these samples (20 seeds, 3 levels, 2 places).
        assert (one == other).float().mean() < 0.5


def test_negatives_carry_no_gradient_and_leave_the_positive_ones_alone(model, x):
    restored, negatives = model.forward_with_negatives(x, K, seeded())
    assert not negatives.requires_grad
    restored.square().sum().backward()
    gradients = [value.grad.clone() for value in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for ours, value in zip(gradients, model.parameters(), strict=True):
        assert torch.equal(ours, value.grad)


@pytest.mark.parametrize("weights", ["own", "positive"])
def test_negatives_equal_the_naive_way(x, routes, monkeypatch, weights):
    """Run the whole network again for every negative, encoder included, with the same prompts.

    The prompts' weights are worked out here, from the logits that the naive path sees.
    """
    torch.manual_seed(0)
    model = cpl.create_model("cplir-tiny", num_prompts=6, top_k=2, negative_weights=weights)
    _, negatives = model.forward_with_negatives(x, K, seeded())
    drawn = {level: indices for level, (_, _, indices) in zip((3, 2, 1), list(routes), strict=True)}
    for j in range(K):

        def wrong_prompt(logits, pool, k, size, normalize, j=j):
            level = {64: 3, 32: 2, 16: 1}[pool.shape[1]]
            indices = drawn[level][j * B : (j + 1) * B]
            p = logits.softmax(-1)
            own = p.gather(1, indices) if weights == "own" else p.topk(k).values
            return aggregate_prompts(own, indices, pool, size)

        monkeypatch.setattr(cpl.nn.prompt, "sparse_prompt", wrong_prompt)
        naive = model(x)
        torch.testing.assert_close(negatives[j], naive.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunks_draw_the_same_prompts(model, x, chunk):
    _, whole = model.forward_with_negatives(x, K, seeded())
    _, chunked = model.forward_with_negatives(x, K, seeded(), negative_chunk=chunk)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)


def test_the_draw_is_a_function_of_the_seed(model, x):
    _, first = model.forward_with_negatives(x, K, seeded(3))
    _, again = model.forward_with_negatives(x, K, seeded(3))
    _, other = model.forward_with_negatives(x, K, seeded(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seed = torch.randint(2**63 - 1, (), generator=seeded(3))  # the one number that a generator is asked for
    assert torch.equal(first, model.forward_with_negatives(x, K, seed=seed)[1])
    assert torch.equal(first, model.forward_with_negatives(x, K, seed=int(seed))[1])


def test_without_a_generator_torchs_own_is_used(model, x):
    torch.manual_seed(5)
    _, first = model.forward_with_negatives(x, K)
    _, second = model.forward_with_negatives(x, K)
    torch.manual_seed(5)
    assert torch.equal(first, model.forward_with_negatives(x, K)[1])
    assert not torch.equal(first, second)


def test_the_encoder_runs_once(model, x):
    runs = []
    model.encoder_level1.register_forward_hook(lambda *_: runs.append("encoder"))
    model.decoder_level3.register_forward_hook(lambda _, args, __: runs.append(args[0].shape[0]))
    model.forward_with_negatives(x, K)
    assert runs == ["encoder", B, K * B]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("promptir", {}, "uses all its 5 prompts"),
        ("restormer", {}, "has no prompts"),
        ("cplir", {"top_k": 5}, "uses all its 5 prompts"),
        ("cplir", {"top_k": 3}, "num_prompts >= 2 \\* top_k, got num_prompts=5 and top_k=3"),
    ],
)
def test_models_without_wrong_prompts_say_so(name, overrides, message):
    with torch.device("meta"):
        model = cpl.create_model(name, **overrides)
        with pytest.raises(ValueError, match=message):
            model.forward_with_negatives(torch.empty(1, 3, 8, 8), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_negatives": 0}, "num_negatives must be at least 1, got 0"),
        ({"num_negatives": 2, "negative_chunk": 0}, "negative_chunk"),
    ],
)
def test_counts_below_one_are_refused(model, x, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.forward_with_negatives(x, **arguments)
