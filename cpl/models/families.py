"""Networks of other projects, told by the names of their parameters: who has such a file needs cpl.patch."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Every pattern of a family matches at the beginning of a name or behind a dot. The more particular families come first.
_FAMILIES: dict[str, tuple[str, ...]] = {
    "AdaIR": (r"fre[123]\.",),
    "MoCE-IR": (r"freq_embed\.|dec\.\d+\.\d+\.layers\.|adapter\.experts\.",),
    "VLU-Net": (r"patch_embed_i\.",),
    "X-Restormer": (r"channel_attn\.", r"spatial_attn\."),
    "Histoformer": (r"attn_g\.", r"skip_patch_embed1\."),
    "DRSformer": (r"attn\.attn1$", r"encoder_level1\.\d"),
    "BioIR": (r"attn\.(l2h|h2l)",),
    "KBNet": (r"attgamma$",),
    "InstructIR": (r"intro\.weight$", r"enc_cond\."),
    "NAFSSR": (r"intro\.weight$", r"body\.\d+\.blk\."),
    "NAFNet": (r"intro\.weight$", r"(encoders|middle_blks|decoders)\.\d"),
    "MPRNet": (r"(shallow_feat1|stage1_encoder)\.",),
    "HVI-CIDNet": (r"(HV|I)_LCA1\.",),
    "Retinexformer": (r"estimator\.depth_conv\.", r"denoiser\."),
    "Uformer": (r"encoderlayer_0\.", r"decoderlayer_0\."),
    "SCUNet": (r"m_head\.", r"m_body\.", r"m_tail\."),
    "SwinIR": (r"layers\.\d+\.residual_group\.",),
    "OneRestore": (r"cross_attn\.", r"self_attn\.", r"ess\."),
    "DFPIR": (r"encoder_shuffle_channel1\.", r"latent_shuffle_channel\."),
    "FoundIR": (r"unet0\.",),
    "dual-pixel Restormer": (r"skip_conv\.weight$", r"encoder_level1\.0\.attn\.qkv\.weight$"),
}


def other_family(names: Iterable[str]) -> str | None:
    """The family of networks, not one of this package's, whose parameters are called so; None if none is known."""
    names = list(names)
    for family, patterns in _FAMILIES.items():
        if all(any(re.search(rf"(?:^|\.)(?:{pattern})", name) for name in names) for pattern in patterns):
            return family
    return None


def use_patch(family: str = "") -> str:
    """What to do with weights of another project's network."""
    whose = f"{family}'s own code" if family else "its own code"
    return f"build the network with {whose}, load the weights there, and put cpl's kernels into it: cpl.patch(model)"
