"""A learnable temperature: bounded as CLIP's is, and able to leave its bounds."""

from __future__ import annotations

import math

import pytest
import torch

from cpl.losses import InfoNCELoss, NTXentLoss, SupConLoss

X, Y = (torch.randn(6, 5, generator=torch.Generator().manual_seed(i)) for i in range(2))
LABELS = torch.tensor([0, 1, 0, 1, 2, 2])
LOSSES = [InfoNCELoss, NTXentLoss, SupConLoss]
FAR = [4.7, 45.0, 89.0, 104.0, 1e10]


def call(loss, x=X, y=Y):
    return loss(x, LABELS) if isinstance(loss, SupConLoss) else loss(x, y)


def learnable(kind, logit_scale=None, **settings):
    loss = kind(learnable_temperature=True, **settings)
    if logit_scale is not None:
        loss.logit_scale.data.fill_(logit_scale)
    return loss


def value_and_gradient(loss):
    value = call(loss)
    value.backward()
    return value.detach(), loss.logit_scale.grad


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("logit_scale", FAR)
@pytest.mark.parametrize("training", [True, False])
def test_beyond_the_bound_it_is_the_loss_at_the_bound(kind, logit_scale, training):
    far = learnable(kind, logit_scale).train(training)
    value, gradient = value_and_gradient(far)
    at_the_bound = value_and_gradient(learnable(kind, temperature=0.01))
    torch.testing.assert_close((value, gradient), at_the_bound)
    assert gradient != 0, "the parameter can come back"
    assert far.temperature.item() == pytest.approx(0.01)
    put_back = far.logit_scale.item()
    assert put_back == pytest.approx(math.log(100)) if training else put_back == pytest.approx(logit_scale)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("logit_scale", [-5.0, -89.0, -104.0, -1e10])
def test_the_other_end_is_bounded_too(kind, logit_scale):
    loss = learnable(kind, logit_scale)
    value, gradient = value_and_gradient(loss)
    torch.testing.assert_close((value, gradient), value_and_gradient(learnable(kind, temperature=100.0)))
    assert gradient.isfinite()
    assert gradient != 0


@pytest.mark.parametrize("kind", LOSSES)
def test_it_leaves_the_bound_at_once_after_many_steps_against_it(kind):
    loss = learnable(kind)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss.logit_scale.grad = torch.tensor(-1.0)  # whatever the loss, a push against the bound
        call(loss)
        optimizer.step()
    assert loss.logit_scale.item() < math.log(100) + 1.01, "one step beyond, no more"
    for _ in range(2):
        optimizer.zero_grad()
        call(loss).backward()  # random vectors: a sharp temperature is bad for them
        optimizer.step()
    assert loss.logit_scale.item() < math.log(100) - 1


@pytest.mark.parametrize("bound", [None, 1000.0, 20.0])
def test_the_bound_is_an_argument(bound):
    loss = learnable(InfoNCELoss, math.log(500.0), max_logit_scale=bound)
    call(loss)
    assert loss.temperature.item() == pytest.approx(max(1 / 500, 1 / (bound or math.inf)))
    assert loss.logit_scale.item() == pytest.approx(math.log(min(500.0, bound or math.inf)))


def test_without_a_bound_the_error_says_what_is_wrong():
    with pytest.raises(ValueError, match="temperature must be a positive finite number, got"):
        call(learnable(InfoNCELoss, 200.0, max_logit_scale=None))


def test_a_call_for_validation_leaves_the_parameter_alone():
    loss = learnable(InfoNCELoss, 50.0)
    with torch.no_grad():
        call(loss)
    call(loss.eval())
    loss.train().requires_grad_(False)
    call(loss)
    assert loss.logit_scale.item() == 50.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_temperature_is_taken_in_float32_at_least(dtype):
    loss = learnable(InfoNCELoss, 45.0).to(dtype)
    value = call(loss, X.to(dtype), Y.to(dtype))
    value.backward()
    assert loss.temperature.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.logit_scale.grad.isfinite()
    # The parameter's own rounding: 2^-9 of 4.6 in bfloat16 moves the scale by up to 1.6 %.
    torch.testing.assert_close(loss.temperature.item(), 0.01, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("captured", [True, False])
def test_it_works_within_torch_func(kind, captured, monkeypatch):
    """On a plain op, whatever transforms the real one allows: the bounds must not stand in their way."""

    def plain(query, key=None, *_, temperature, **__):
        key = query if key is None else key
        return (query @ key.T / temperature).logsumexp(1).mean()

    monkeypatch.setattr("cpl.losses.info_nce.info_nce", plain)
    loss = learnable(kind, 45.0)
    own = dict(loss.named_parameters())
    given = {"logit_scale": torch.tensor(45.0)}

    def value(parameters, x):
        return torch.func.functional_call(
            loss, own if captured else parameters, (x, LABELS if kind is SupConLoss else Y)
        )

    x = X.clone().requires_grad_()
    wanted = torch.autograd.grad(value(own, x), x)[0]
    loss.logit_scale.data.fill_(45.0)
    torch.testing.assert_close(torch.func.jacrev(value, 1)(given, X), wanted)
    torch.testing.assert_close(torch.func.grad(value, 1)(given, X), wanted)
    each = torch.func.vmap(torch.func.grad(value, 1), (None, 0))(given, X.expand(3, 6, 5))
    torch.testing.assert_close(each, wanted.expand(3, 6, 5))
    assert given["logit_scale"] == loss.logit_scale == 45.0, "nothing changes behind torch.func's back"


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_and_puts_back(backend):
    torch._dynamo.reset()
    loss = learnable(InfoNCELoss, 45.0, symmetric=True)
    value = torch.compile(loss, backend=backend, fullgraph=True)(X, Y)
    value.backward()
    wanted = learnable(InfoNCELoss, 45.0, symmetric=True)
    torch.testing.assert_close((value.detach(), loss.logit_scale.grad), value_and_gradient(wanted))
    torch.testing.assert_close(loss.logit_scale, wanted.logit_scale)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.005}, "from 1 / max_logit_scale = 0.01 to 100, got 0.005. Give another max_logit_scale"),
        ({"temperature": 200.0}, "from 1 / max_logit_scale = 0.01 to 100, got 200.0"),
        ({"temperature": 0.07, "max_logit_scale": 10.0}, "= 0.1 to 100, got 0.07"),
        ({"max_logit_scale": 0.0}, "max_logit_scale must be a positive finite number, got 0.0"),
        ({"max_logit_scale": math.inf}, "max_logit_scale must be a positive finite number, got inf"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    for kind in LOSSES:
        with pytest.raises(ValueError, match=message):
            learnable(kind, **settings)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_fixed_temperature_has_no_bounds(kind):
    assert kind(temperature=0.005).temperature == 0.005
    assert kind(temperature=200.0).temperature == 200.0
