"""Checkpoints of networks that are not this package's: the refusal names the family and the way out, cpl.patch.

The names are those of the published networks' parameters, a few of each.
"""

from __future__ import annotations

import pytest
import torch

import cpl
from cpl.errors import CplError
from cpl.models import MODELS
from cpl.models.families import other_family

RESTORMER = [
    "patch_embed.proj.weight",
    "encoder_level1.0.attn.qkv.weight",
    "encoder_level1.0.attn.temperature",
]
NAMES = {
    "AdaIR": [*RESTORMER, "fre1.para1", "fre1.channel_cross_l.q.weight", "fre2.score_gen.bias"],
    "MoCE-IR": [
        "patch_embed.proj.weight",
        "freq_embed.high_conv.0.weight",
        "enc.0.0.layers.0.norms.0.body.weight",
        "dec.0.2.layers.0.adapter.experts.0.0.proj.0.weight",
    ],
    "NAFNet": [
        "intro.weight",
        "ending.weight",
        "encoders.0.0.beta",
        "encoders.0.0.sca.1.weight",
        "middle_blks.0.conv1.weight",
    ],
    "NAFSSR": ["intro.weight", "body.0.blk.beta", "body.0.fusion.gamma"],
    "InstructIR": ["intro.weight", "ending.weight", "encoders.0.0.sca.1.weight", "enc_cond.0.gamma"],
    "KBNet": ["intro.weight", "encoders.0.0.attgamma", "encoders.0.0.ga1", "encoders.0.0.sca.1.weight"],
    "MPRNet": ["shallow_feat1.0.weight", "stage1_encoder.encoder_level1.0.CA.conv_du.0.weight"],
    "X-Restormer": [
        "patch_embed.proj.weight",
        "encoder_level1.0.channel_attn.temperature",
        "encoder_level1.0.spatial_attn.qkv.weight",
    ],
    "Histoformer": [*RESTORMER, "encoder_level1.0.attn_g.temperature", "skip_patch_embed1.proj.0.weight"],
    "DRSformer": [*RESTORMER, "encoder_level0.layers.0.preprocess.op.0.weight", "encoder_level1.0.attn.attn1"],
    "BioIR": ["patch_embed.proj.weight", "encoder_level1.0.attn.l2h.weight", "encoder_level1.0.attn.h2l.weight"],
    "VLU-Net": [*RESTORMER, "patch_embed_i.proj.weight"],
    "DFPIR": [*RESTORMER, "encoder_shuffle_channel1.norm1.body.weight", "latent_shuffle_channel.norm1.body.weight"],
    "OneRestore": ["encoder.el.el.cross_attn.temperature", "encoder.el.el.self_attn.temperature", "encoder.ess.el.x"],
    "HVI-CIDNet": ["HV_LCA1.ffn.temperature", "I_LCA1.ffn.temperature"],
    "Retinexformer": ["body.0.estimator.depth_conv.weight", "body.0.denoiser.embedding.weight"],
    "Uformer": ["encoderlayer_0.blocks.0.attn.qkv.to_q.weight", "decoderlayer_0.blocks.0.mlp.linear1.0.weight"],
    "SCUNet": ["m_head.0.weight", "m_body.0.conv1_1.weight", "m_tail.0.weight"],
    "SwinIR": ["layers.0.residual_group.blocks.0.attn.qkv.weight"],
    "FoundIR": ["unet0.init_conv.weight"],
    "dual-pixel Restormer": [*RESTORMER, "skip_conv.weight"],
}  # fmt: skip


def refusal(content, path):
    torch.save(content, path)
    with pytest.raises(CplError) as caught:
        cpl.load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("wrap", ["params", "lightning", "bare", "module"])
@pytest.mark.parametrize("family", NAMES)
def test_a_known_family_is_named_with_the_way_out(family, wrap, tmp_path):
    state = {name: torch.zeros(4, 3, 1, 1) for name in NAMES[family]}
    content = {
        "params": {"params": state},
        "lightning": {
            "state_dict": {f"net.{name}": value for name, value in state.items()}
            | {"loss.weight": torch.zeros(1)},
            "pytorch-lightning_version": "2",
        },
        "bare": state,
        "module": {f"module.{name}": value for name, value in state.items()},
    }[wrap]
    message = refusal(content, tmp_path / "model.pth")
    assert f"got {family}'s weights; build the network with {family}'s own code" in message
    assert "cpl.patch(model)" in message


def test_a_few_names_of_a_family_are_enough():
    """Of a file cut down to a part, and of the family's other sizes."""
    assert other_family(["dec.0.2.layers.0.adapter.experts.0.0.proj.0.weight"]) == "MoCE-IR"
    assert other_family(["model.intro.weight", "model.middle_blks.0.beta"]) == "NAFNet"
    assert other_family(["module.net.fre3.conv.weight"]) == "AdaIR"
    assert other_family(["classifier.weight", "prefix_intro.weight", "encoders.0.0.beta"]) is None


def test_our_own_networks_are_no_other_family():
    for name in MODELS:
        state = cpl.create_model(name, dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1).state_dict()
        assert other_family(state) is None
        assert other_family(f"net.{name}" for name in state) is None


def test_other_numbers_of_channels_are_named(tmp_path):
    state = cpl.create_model(
        "restormer", dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1
    ).state_dict()
    message = refusal(state | {"patch_embed.proj.weight": torch.zeros(8, 1, 3, 3)}, tmp_path / "grey.pth")
    assert "must hold a network for RGB images, got one for 1 channel;" in message
    assert "cpl.patch(model)" in message


def test_unknown_networks_are_pointed_to_patch_too(tmp_path):
    assert "cpl.patch(model)" in refusal({"backbone.weight": torch.zeros(3)}, tmp_path / "a.pth")
    state = cpl.create_model(
        "restormer", dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1
    ).state_dict()
    message = refusal(state | {"extra.weight": torch.zeros(3)}, tmp_path / "b.pth")
    assert "1 unexpected: extra.weight" in message
    assert "cpl.patch(model)" in message
