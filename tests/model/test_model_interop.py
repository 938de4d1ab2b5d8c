"""Other projects' checkpoints: BasicSR's, Lightning's and bare state dicts, told apart and fitted."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch

import cpl
from cpl.errors import CplError

SMALL = {"dim": 16, "num_blocks": (1, 1, 1, 2), "num_refinement_blocks": 1, "prompt_channels": (16, 32, 64)}
# Layers of PromptIR's released network that its forward never runs.
UNUSED = {
    f"{name}.weight": torch.zeros(2, 2, 1, 1)
    for name in (
        "chnl_reduce1",
        "chnl_reduce2",
        "chnl_reduce3",
        *(f"reduce_noise_channel_{i}" for i in (1, 2, 3)),
    )
}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return cpl.create_model("cplir-tiny").state_dict()


@pytest.fixture
def save(tmp_path):
    def saved(content: object, **arguments: object):
        torch.save(content, tmp_path / "model.pth", **arguments)
        return tmp_path / "model.pth"

    return saved


def refusal(path, **arguments):
    with pytest.raises(CplError) as caught:
        cpl.load_checkpoint(path, **arguments)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def equal(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_basicsr_files_are_read_and_the_average_preferred(state, save):
    model, info = cpl.load_checkpoint(save({"params": state}))
    assert equal(model, state)
    assert (info["format"], info["key"], info["architecture"]) == ("basicsr", "params", "cplir-tiny")
    assert model.config == cpl.models.MODELS["cplir-tiny"]
    average = {name: value + 1 for name, value in state.items()}
    model, info = cpl.load_checkpoint(save({"params": state, "params_ema": average}))
    assert info["key"] == "params_ema"
    assert equal(model, average)


def test_lightning_files_are_read_without_what_is_no_part_of_the_network(state, save):
    content = {
        "state_dict": {**prefixed(state | UNUSED, "net."), "loss_fn.weight": torch.zeros(3)},
        "epoch": 3,
        "optimizer_states": [{"state": {}}],
    }
    model, info = cpl.load_checkpoint(save(content))
    assert equal(model, state)
    assert (info["format"], info["architecture"]) == ("lightning", "promptir")
    assert model.config.prompting == "dense"
    assert sorted(info["unused"]) == sorted(UNUSED)
    assert info["notes"] == []  # PromptIR's unused layers leave no doubt


def test_bare_state_dicts_and_wrappers_names_are_read(state, save):
    for content in (
        state,
        prefixed(state, "module."),
        {"params": prefixed(state, "module._orig_mod.")},
        {"state_dict": state},
    ):
        model, _ = cpl.load_checkpoint(save(content))
        assert equal(model, state)
    assert equal(cpl.load_checkpoint(save(state, _use_new_zipfile_serialization=False))[0], state)


def test_safetensors_without_our_metadata_are_read(state, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(dict(state), tmp_path / "a.safetensors")
    model, info = cpl.load_checkpoint(tmp_path / "a.safetensors")
    assert equal(model, state)
    assert info["format"] == "safetensors"


def test_what_shapes_cannot_tell_is_assumed_aloud_or_said_by_the_caller(state, save):
    path = save({"params": state})
    model, info = cpl.load_checkpoint(path)
    assert model.config.top_k == 1
    assert any("pass architecture=" in note for note in info["notes"])
    assert any("top_k=1 is assumed" in note for note in info["notes"])
    model, info = cpl.load_checkpoint(path, top_k=2)
    assert (model.config.top_k, info["notes"]) == (2, [])
    model, info = cpl.load_checkpoint(path, architecture="promptir")
    assert (model.architecture, model.config.prompting, info["notes"]) == ("promptir", "dense", [])
    model, info = cpl.load_checkpoint(
        save({"state_dict": prefixed(state | UNUSED, "net.")}), architecture="cplir"
    )
    assert (info["architecture"], model.config.top_k) == ("cplir-tiny", 1)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cplir-small", {}),
        ("restormer", {"dim": 16, "num_blocks": (2, 1, 3, 1), "num_refinement_blocks": 2}),
        ("restormer", {"dim": 8, "norm_bias": False}),
        ("cplir", {**SMALL, "heads": (2, 2, 2, 4), "prompt_heads": 2, "num_prompts": 9}),
        ("cplir", {**SMALL, "ffn_expansion": 2.0, "prompt_sizes": (8, 4, 2)}),
    ],
)
def test_the_configuration_is_told_from_the_shapes(name, overrides, save):
    made = cpl.create_model(name, **overrides)
    model, info = cpl.load_checkpoint(save(made.state_dict()))
    assert info["architecture"] == name
    assert equal(model, made.state_dict())
    told, wanted = model.config.to_dict(), made.config.to_dict()
    if not made.config.num_prompts:
        for name in ("prompt_channels", "prompt_sizes", "prompt_heads"):
            told.pop(name), wanted.pop(name)
    assert told == wanted


def test_a_contradiction_is_refused(state, save):
    assert "its shapes (dim 16) are those of 'cplir-tiny'" in refusal(save(state), architecture="cplir-small")
    assert "restormer has no prompts" in refusal(save(state), architecture="restormer")
    assert "top_k must be at most num_prompts = 5, got 9" in refusal(save(state), top_k=9)
    with pytest.raises(ValueError, match="no model 'resnet'"):
        cpl.load_checkpoint(save(state), architecture="resnet")


def test_what_does_not_fit_is_named_and_counted(state, save):
    first = {f"encoder_level1.0.ffn.{name}.weight" for name in ("project_in", "dwconv")} | {"output.weight"}
    cut = {name: value for name, value in state.items() if name not in first}
    message = refusal(save(cut | {"blur.weight": torch.zeros(1)}))
    assert "3 missing" in message
    assert "output.weight" in message
    assert "1 unexpected: blur.weight" in message
    many = state | {f"head.{i}.weight": torch.zeros(1) for i in range(9)}
    assert "9 unexpected: head.0.weight, head.1.weight, head.2.weight and 6 more" in refusal(save(many))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"features.0.weight": torch.zeros(1)},
            "patch_embed.proj.weight is not among its 1 tensors (first: features.0.weight)",
        ),
        ({"patch_embed.proj.weight": torch.zeros(1)}, "has shape (1,), where 4 dimensions belong"),
        ({"model": {"w": torch.zeros(1)}}, "patch_embed.proj.weight is not among its 1 tensors (first: w)"),
        ({"epoch": 3, "args": {"lr": 1.0}}, "at its top it holds 'epoch', which is not a tensor"),
        ({"model": {"name": "cplir"}}, "under 'model' it holds 'name', which is not a tensor"),
        ({"params": {}}, "under 'params' it holds nothing"),
        ({"state_dict": {"a": 3}}, "'a', which is not a tensor"),
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
    ],
)
def test_what_holds_no_network_is_refused(content, message, save):
    assert message in refusal(save(content))


def test_a_file_that_would_run_code_is_refused_with_a_way_out(state, save):
    message = refusal(save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=1)}))
    assert "would run code" in message
    assert "weights_only" not in message  # no command to paste: a file's name could be one
    assert "docs/model.md, 'Converting a file that needs unpickling'" in message
    page = Path(cpl.__file__).parents[1] / "docs/model.md"
    if page.exists():  # not in an installed copy
        assert "### Converting a file that needs unpickling\n" in page.read_text()


def test_no_code_from_a_file_is_run(tmp_path):
    ran = tmp_path / "ran"

    class Malice:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"params": Malice()}, protocol=2))
    refusal(tmp_path / "bad.pth")
    torch.save({"params": Malice()}, tmp_path / "bad2.pth")
    refusal(tmp_path / "bad2.pth")
    assert not ran.exists()


def test_damaged_torch_files_are_refused(state, save):
    path = save(state)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    assert "damaged or cut short" in refusal(path)
    path.write_bytes(b"\x80\x02garbage")
    assert "damaged" in refusal(path)


def test_nan_weights_are_refused_by_name(state, save):
    bad = dict(state) | {"output.weight": torch.full((3, 32, 3, 3), torch.nan)}
    assert "NaN or infinity in output.weight" in refusal(save({"params": bad}))


LIGHTNING = {"epoch": 3, "pytorch-lightning_version": "2.3.0"}


@pytest.mark.parametrize("prefix", ["net.", "model.", "net._orig_mod.", "module.net.", ""])
def test_a_lightning_file_that_two_architectures_fit_asks_for_one(state, save, prefix):
    """CPL's and PromptIR's weights differ in the unused layers alone, and what they compute in the prompts picked."""
    path = save({**LIGHTNING, "state_dict": prefixed(state, prefix)})
    message = refusal(path)
    for remedy in ("architecture='cplir'", "architecture='promptir'", "--architecture cplir"):
        assert remedy in message
    for architecture, prompting in (("cplir", "sparse"), ("cplir-tiny", "sparse"), ("promptir", "dense")):
        model, info = cpl.load_checkpoint(path, architecture=architecture)
        assert (model.config.prompting, info["format"]) == (prompting, "lightning")
        assert equal(model, state)
    model, _ = cpl.load_checkpoint(path, top_k=2)
    assert model.config.top_k == 2
    model, info = cpl.load_checkpoint(save({**LIGHTNING, "state_dict": prefixed(state | UNUSED, prefix)}))
    assert (model.architecture, info["notes"]) == ("promptir", [])


def test_a_lightning_file_without_prompts_asks_for_nothing(save):
    made = cpl.create_model("restormer", dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)
    model, info = cpl.load_checkpoint(save({**LIGHTNING, "state_dict": prefixed(made.state_dict(), "net.")}))
    assert (info["architecture"], info["format"], info["notes"]) == ("restormer", "lightning", [])
    assert equal(model, made.state_dict())


@pytest.mark.parametrize("unused", [False, True])
def test_other_files_that_two_architectures_fit_are_cplir_aloud(state, save, unused):
    for content in (state, {"params": state}, {"params_ema": state}, {"model": state}):
        if unused:
            content = {"params": state | UNUSED}
        _, info = cpl.load_checkpoint(save(content))
        assert info["architecture"] == ("promptir" if unused else "cplir-tiny")
        assert bool(info["notes"]) is not unused


KEYS = (
    "model",
    "model_state_dict",
    "state_dict_ema",
    "ema",
    "network",
    "net",
    "net_g",
    "netG",
    "generator",
    "weights",
    "restorer",  # any other
)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "restoration_net.", "a.b."])
@pytest.mark.parametrize("key", KEYS)
def test_weights_under_any_key_and_prefix_are_found(state, save, key, prefix):
    adam = {
        "state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}},
        "param_groups": [{"lr": 1e-3}],
    }
    content = {"epoch": 3, "optimizer": adam, key: prefixed(state, prefix), "args": {"lr": 1e-3}}
    model, info = cpl.load_checkpoint(save(content))
    assert equal(model, state)
    assert (info["key"], info["architecture"], info["format"]) == (key, "cplir-tiny", "plain")


def test_nested_keys_are_found(state, save):
    model, info = cpl.load_checkpoint(
        save({"ema": {"decay": 0.999, "module": state}, "model": {"name": "x"}})
    )
    assert equal(model, state)
    assert info["key"] == "ema.module"


def test_an_average_comes_before_the_raw_weights(state, save):
    average = {name: value + 1 for name, value in state.items()}
    for content in (
        {"model": state, "model_ema": average},
        {"state_dict": state, "state_dict_ema": average},
        {"model": state, "ema": {"model": average}},
        {
            "ema": {
                **prefixed(state, "online_model."),
                **prefixed(average, "ema_model."),
                "step": torch.ones(()),
            }
        },
        {"model": {**prefixed(state, "net."), **prefixed(average, "net_ema.")}},
    ):
        model, _ = cpl.load_checkpoint(save(content))
        assert equal(model, average)


def test_several_sets_of_weights_are_refused_by_name(state, save):
    message = refusal(save({"first": state, "second": state}))
    assert "must hold one set of weights, got 2: 'first', 'second'. Save the restorer's alone" in message
    message = refusal(save({"model": {**prefixed(state, "a."), **prefixed(state, "b.")}}))
    assert "must hold one network, got 2, under 'a.', 'b.'. Save" in message


def test_a_judge_beside_the_network_is_left_out(state, save):
    judge = {
        "loss.vit.patch_embed.proj.weight": torch.zeros(4, 3, 16, 16),
        "loss.vit.head.weight": torch.zeros(2),
    }
    model, _ = cpl.load_checkpoint(
        save({"state_dict": prefixed(state, "net.") | judge}), architecture="cplir"
    )
    assert equal(model, state)


def test_safetensors_with_prefixes_are_read(state, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(prefixed(state, "model.net."), tmp_path / "a.safetensors")
    assert equal(cpl.load_checkpoint(tmp_path / "a.safetensors")[0], state)
