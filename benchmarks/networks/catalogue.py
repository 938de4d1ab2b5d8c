"""The networks: whose code, at which commit, in which published configuration, and what it is called with.

Of a clone only ``files`` are needed. What is built is what the repository trains or tests with by default; where the
two differ, ``configuration`` says which one it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ARCHS = ("basicsr", "basicsr.models", "basicsr.models.archs")


def _nothing(_image: Tensor) -> tuple[Any, ...]:
    return ()


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: what the table calls it.
        repository: owner/name on GitHub.
        commit: what the figures are of.
        files: what is checked out.
        module: what is imported, below ``path``.
        build: module -> the network.
        configuration: the same in words.
        path: folder in the clone that goes onto sys.path.
        bare: packages of the clone whose __init__ is not run.
        absent: packages that get stand-ins.
        others: image -> what the network is called with beside the image.
        constants: names that the published file reads and does not define; they are None.
        channels: of the image.
        least_side: of the image; a smaller one does not fill its windows.
        dtype_matters: its norms choose eps by the dtype; the fp64 run must take fp32's.
        note: what the reader must know.
    """

    name: str
    repository: str
    commit: str
    files: tuple[str, ...]
    module: str
    build: Callable[[ModuleType], nn.Module]
    configuration: str
    path: str = ""
    bare: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    others: Callable[[Tensor], tuple[Any, ...]] = _nothing
    constants: tuple[str, ...] = ()
    channels: int = 3
    least_side: int = 64
    dtype_matters: bool = False
    note: str = ""

    @property
    def folder(self) -> str:
        return self.repository.split("/")[1]


def _vector(length: int) -> Callable[[Tensor], tuple[Any, ...]]:
    """An embedding of a text or of a degradation, for each image."""
    return lambda image: (
        torch.randn(len(image), length, generator=torch.Generator().manual_seed(1)).to(image),
    )


def _diffusion(image: Tensor) -> tuple[Any, ...]:
    """The degraded image, a time, and CLIP's two embeddings."""
    (text,), (content,) = _vector(512)(image), _vector(512)(image)
    return image.flip(0, 3), torch.tensor([37] * len(image)), text, content.flip(1)


NETWORKS = (
    Network(
        "Restormer",
        "swz30/Restormer",
        "df766d5521afd21cce56e24159f300b30ebf3fb0",
        ("basicsr/models/archs/restormer_arch.py",),
        "basicsr.models.archs.restormer_arch",
        lambda m: m.Restormer(),
        "as for deraining and deblurring (WithBias)",
        bare=ARCHS,
    ),
    Network(
        "Restormer, BiasFree",
        "swz30/Restormer",
        "df766d5521afd21cce56e24159f300b30ebf3fb0",
        ("basicsr/models/archs/restormer_arch.py",),
        "basicsr.models.archs.restormer_arch",
        lambda m: m.Restormer(LayerNorm_type="BiasFree"),
        "as for denoising (BiasFree)",
        bare=ARCHS,
    ),
    Network(
        "PromptIR",
        "va1shn9v/PromptIR",
        "106159ab809101f2e25b6714195cd6fa9a938d36",
        ("net/model.py",),
        "net.model",
        lambda m: m.PromptIR(decoder=True),
        "decoder=True",
    ),
    Network(
        "AdaIR",
        "c-yn/AdaIR",
        "ccb8b98e49614e07badd0641e5163fa7635c2f02",
        ("net/model.py",),
        "net.model",
        lambda m: m.AdaIR(decoder=True),
        "decoder=True",
    ),
    Network(
        "MoCE-IR",
        "eduardzamfir/MoCE-IR",
        "a1a6e7480bf0537dba8e7a776854820cda85f5df",
        ("src/net/__init__.py", "src/net/moce_ir.py"),
        "net.moce_ir",
        lambda m: m.MoCEIR(
            dim=48,
            num_blocks=[4, 6, 6, 8],
            num_dec_blocks=[2, 4, 4],
            heads=[1, 2, 4, 8],
            num_refinement_blocks=4,
            stage_depth=[1, 1, 1],
            depth_type="constant",
            rank_type="spread",
            with_complexity=True,
        ),
        "MoCE_IR with complexity bias",
        path="src",
        absent=("fvcore",),
    ),
    Network(
        "CPLIR",
        "Aitical/CPLIR",
        "801b4ff7117e3d6ee726698f041d2091b16ed6cd",
        ("basicsr/archs/cplir_inference_arch.py",),
        "basicsr.archs.cplir_inference_arch",
        lambda m: m.SparsePromptIR(decoder=True),
        "Test_CPLIR_WeatherBench",
        bare=("basicsr", "basicsr.archs"),
        absent=("basicsr.utils",),
        constants=("privilege_post",),
        note="the published file reads a name that it does not define (privilege_post); here it is None",
    ),
    Network(
        "X-Restormer",
        "Andrew0613/X-Restormer",
        "e096da6bf5f640f8a0d1fde3eec893ded1feac6f",
        ("xrestormer/archs/xrestormer_arch.py",),
        "xrestormer.archs.xrestormer_arch",
        lambda m: m.XRestormer(num_blocks=[2, 4, 4, 4], spatial_heads=[1, 2, 4, 8]),
        "005_xrestormer_dehaze",
        bare=("xrestormer", "xrestormer.archs"),
        absent=("basicsr", "torchstat"),
    ),
    Network(
        "OneRestore",
        "gy65896/OneRestore",
        "23a2e6af066864dca013aeed7f6c6f5958aa7259",
        ("model/OneRestore.py",),
        "model.OneRestore",
        lambda m: m.OneRestore(),
        "the restorer with a random embedding of the degradation",
        absent=("torchvision", "thop", "huggingface_hub", "fvcore"),
        others=_vector(324),
    ),
    Network(
        "DFPIR",
        "TxpHome/DFPIR",
        "b9ba223d655d2c174507c83527ba3958dfb90f7d",
        ("net/model.py", "net/arch_util.py", "net/local_arch.py"),
        "net.model",
        lambda m: m.ChannelShuffle_skip_textguaid(device="cpu"),
        "the restorer with a random embedding of the text",
        absent=("torchvision", "clip", "huggingface_hub"),
        others=_vector(512),
    ),
    Network(
        "VLU-Net",
        "xianggkl/VLU-Net",
        "8c2f7a7543762cce5ed45736d0c6787c92a1f5e6",
        ("net/Final.py",),
        "net.Final",
        lambda m: m.VLUNet(7),
        "de_dim=7, with a random embedding of the degradation",
        others=_vector(512),
    ),
    Network(
        "Histoformer",
        "sunshangquan/Histoformer",
        "1f045f06c03551c31504d8042dbe6ff9b9569108",
        ("basicsr/models/archs/histoformer_arch.py",),
        "basicsr.models.archs.histoformer_arch",
        lambda m: m.Histoformer(dim=36, num_blocks=[4, 4, 6, 8], ffn_expansion_factor=2.667),
        "Allweather_Histoformer",
        bare=ARCHS,
    ),
    Network(
        "NAFNet",
        "megvii-research/NAFNet",
        "2b4af71ebe098a92a75910c233a3965a3e93ede4",
        tuple(f"basicsr/models/archs/{name}.py" for name in ("NAFNet_arch", "arch_util", "local_arch")),
        "basicsr.models.archs.NAFNet_arch",
        lambda m: m.NAFNet(width=64, enc_blk_nums=[2, 2, 4, 8], middle_blk_num=12, dec_blk_nums=[2, 2, 2, 2]),
        "NAFNet-width64 for SIDD",
        bare=ARCHS,
        absent=("basicsr.utils",),
    ),
    Network(
        "InstructIR",
        "mv-lab/InstructIR",
        "3c0299ff6dc32cdd218ec02abbb92febab6fcfb2",
        ("models/instructir.py", "models/nafnet.py", "models/nafnet_utils.py"),
        "models.instructir",
        lambda m: m.create_model(width=32, middle_blk_num=4, txtdim=256),
        "eval5d, with a random embedding of the text",
        others=_vector(256),
    ),
    Network(
        "BioIR",
        "c-yn/BioIR",
        "ff61e477ecf64db2731ef080a1e586f3f9d4248d",
        ("All_in_One/net/model.py",),
        "net.model",
        lambda m: m.BioIR(),
        "all-in-one",
        path="All_in_One",
    ),
    Network(
        "HVI-CIDNet",
        "Fediory/HVI-CIDNet",
        "eb43d7d91e9a336c66856824ff9e4603ae41f408",
        tuple(f"net/{name}.py" for name in ("CIDNet", "HVI_transform", "LCA", "transformer_utils")),
        "net.CIDNet",
        lambda m: m.CIDNet(),
        "CIDNet()",
        absent=("huggingface_hub",),
    ),
    Network(
        "DRSformer",
        "cschenxiang/DRSformer",
        "e77bbb4ecc59aaa2cd170a0f8f65b188a9dd77c6",
        ("basicsr/models/archs/DRSformer_arch.py",),
        "basicsr.models.archs.DRSformer_arch",
        lambda m: m.DRSformer(),
        "Deraining",
        bare=ARCHS,
    ),
    Network(
        "KBNet_s",
        "zhangyi-3/KBNet",
        "ec33fb34aff0cf11358f062a1b8c945b3d412312",
        tuple(f"basicsr/models/archs/{name}.py" for name in ("kbnet_s_arch", "kbnet_l_arch", "kb_utils")),
        "basicsr.models.archs.kbnet_s_arch",
        lambda m: m.KBNet_s(),
        "as for denoising",
        bare=ARCHS,
        note="its kernel basis attention keeps tensors where no hook sees them; they are not counted",
    ),
    Network(
        "KBNet_l",
        "zhangyi-3/KBNet",
        "ec33fb34aff0cf11358f062a1b8c945b3d412312",
        tuple(f"basicsr/models/archs/{name}.py" for name in ("kbnet_s_arch", "kbnet_l_arch", "kb_utils")),
        "basicsr.models.archs.kbnet_l_arch",
        lambda m: m.KBNet_l(),
        "as for deraining",
        bare=ARCHS,
        note="its kernel basis attention keeps tensors where no hook sees them; they are not counted",
    ),
    Network(
        "Retinexformer",
        "caiyuanhao1998/Retinexformer",
        "ad5c0918b94b9cec1dbd2fe296499c13e7ccac78",
        ("basicsr/models/archs/RetinexFormer_arch.py",),
        "basicsr.models.archs.RetinexFormer_arch",
        lambda m: m.RetinexFormer(n_feat=40, stage=1, num_blocks=[1, 2, 2]),
        "RetinexFormer_LOL_v1",
        bare=ARCHS,
    ),
    Network(
        "Uformer",
        "ZhendongWang6/Uformer",
        "65fc970a8ffc09605faca74ed016ee93c9ad8a36",
        ("model.py",),
        "model",
        lambda m: m.Uformer(
            img_size=128,
            embed_dim=32,
            win_size=8,
            token_projection="linear",
            token_mlp="leff",
            depths=[1, 2, 8, 8, 2, 8, 8, 2, 1],
            modulator=True,
            drop_path_rate=0.0,
        ),
        "Uformer_B without stochastic depth",
        absent=("timm",),
        least_side=128,
    ),
    Network(
        "SCUNet",
        "cszn/SCUNet",
        "52e440a80a655b01e0b41e9dd9bfe599bc11625e",
        ("models/network_scunet.py",),
        "models.network_scunet",
        lambda m: m.SCUNet(config=[4, 4, 4, 4, 4, 4, 4], dim=64),
        "SCUNet of the released weights",
        bare=("models",),
        absent=("thop", "timm"),
    ),
    Network(
        "FoundIR",
        "House-Leo/FoundIR",
        "6d19958499622d90ca71fe971d83b1e428c17cd0",
        ("src/model.py",),
        "src.model",
        lambda m: m.UnetRes(
            dim=64, dim_mults=(1, 2, 4, 8), condition=True, objective="pred_res", test_res_or_noise="res"
        ),
        "the generalist's U-Net, one step of its diffusion",
        absent=("torchvision", "cv2", "accelerate", "ema_pytorch", "thop", "tqdm", "metrics"),
        others=lambda image: ((torch.tensor([37] * len(image)),) * 2,),
        channels=6,
        dtype_matters=True,
    ),
    Network(
        "DA-CLIP",
        "Algolzw/daclip-uir",
        "c2cc14146faac85680b4cb39ece4ef9e2a7c7c24",
        tuple(
            f"universal-image-restoration/config/daclip-sde/models/modules/{name}.py"
            for name in ("DenoisingUNet_arch", "attention", "module_util")
        ),
        "models.modules.DenoisingUNet_arch",
        lambda m: m.ConditionalUNet(3, 3, 64, ch_mult=[1, 2, 4, 8], context_dim=512, use_image_context=True),
        "daclip-sde, one step of its diffusion, with random embeddings of image and text",
        path="universal-image-restoration/config/daclip-sde",
        bare=("models", "models.modules"),
        others=_diffusion,
        dtype_matters=True,
    ),
)


def named(name: str) -> Network:
    return next(network for network in NETWORKS if network.name == name)
