"""The network: a U-shaped transformer whose decoder is told by prompts what to undo."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpl.models.config import LEVELS, ModelConfig
from cpl.nn.block import PatchEmbed, TransformerBlock
from cpl.nn.padding import crop, pad_to_multiple
from cpl.nn.pointwise import PointwiseConv
from cpl.nn.prompt import NegativeDraw, SparsePromptModule, TilePrompts
from cpl.nn.resample import Downsample, Upsample
from cpl_kernels import checks

MULTIPLE = 8  # the image is halved three times


class Encoded(NamedTuple):
    """What the encoder makes of an image; the same whatever prompts the decoder is given."""

    level1: Tensor  # [B, dim, H, W]
    level2: Tensor  # [B, 2 dim, H/2, W/2]
    level3: Tensor  # [B, 4 dim, H/4, W/4]
    latent: Tensor  # [B, 8 dim, H/8, W/8]

    def detach(self) -> Encoded:
        return Encoded(*(features.detach() for features in self))


class Restorer(nn.Module):
    """[B, 3, H, W] -> [B, 3, H, W], for any H and W >= 1; RGB in [0, 1] by convention, not clipped.

    CPL's network, PromptIR's and Restormer's differ in configuration only; parameter names are those of
    the released weights. Make one with :func:`cpl.create_model`.

    Attributes:
        config: :class:`ModelConfig`.
        architecture: its name in ``cpl.models.MODELS``.

    Source: Restormer, arXiv 2111.09881, figure 2; prompts as in PromptIR, arXiv 2306.13090, figure 2;
    sparse ones and negatives as in CPL, arXiv 2504.09973.
    """

    def __init__(self, config: ModelConfig, architecture: str) -> None:
        super().__init__()
        self.config, self.architecture = config, architecture
        dim, blocks, heads = config.dim, config.num_blocks, config.heads

        def level(channels: int, index: int, count: int | None = None) -> nn.Sequential:
            count = blocks[index] if count is None else count
            return nn.Sequential(*(self._block(channels, heads[index]) for _ in range(count)))

        self.patch_embed = PatchEmbed(dim)
        if config.num_prompts:
            self.prompt1, self.prompt2, self.prompt3 = (self._prompt_module(i) for i in LEVELS)
        self.encoder_level1 = level(dim, 0)
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = level(2 * dim, 1)
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = level(4 * dim, 2)
        self.down3_4 = Downsample(4 * dim)
        self.latent = level(8 * dim, 3)

        # With prompts, mixing them in brings the latent down to 4 dim before it is upsampled.
        self.up4_3 = Upsample(4 * dim if config.num_prompts else 8 * dim)
        self.reduce_chan_level3 = PointwiseConv(6 * dim if config.num_prompts else 8 * dim, 4 * dim)
        if config.num_prompts:
            self.noise_level3 = self._block(config.prompted_width(3), config.prompt_heads)
            self.reduce_noise_level3 = PointwiseConv(config.prompted_width(3), 4 * dim)
        self.decoder_level3 = level(4 * dim, 2)
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = PointwiseConv(4 * dim, 2 * dim)
        if config.num_prompts:
            self.noise_level2 = self._block(config.prompted_width(2), config.prompt_heads)
            self.reduce_noise_level2 = PointwiseConv(config.prompted_width(2), 4 * dim)
        self.decoder_level2 = level(2 * dim, 1)
        self.up2_1 = Upsample(2 * dim)
        if config.num_prompts:
            self.noise_level1 = self._block(config.prompted_width(1), config.prompt_heads)
            self.reduce_noise_level1 = PointwiseConv(config.prompted_width(1), 2 * dim)
        self.decoder_level1 = level(2 * dim, 0)
        self.refinement = level(2 * dim, 0, config.num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor, tiles: TilePrompts | None = None) -> Tensor:
        """Restore x [B, 3, H, W], in the parameters' dtype (or any under autocast); with ``tiles`` the tiles of one
        image, with prompts that were chosen before."""
        self._check(x)
        return self._add_residual(x, self.decode(self.encode(x), tiles=tiles))

    def forward_with_negatives(
        self,
        x: Tensor,
        num_negatives: int,
        generator: torch.Generator | None = None,
        *,
        seed: Tensor | int | None = None,
        negative_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Restore x with the right prompts, and ``num_negatives`` times with wrong ones.

        The encoder runs once; the negatives are one decoder call on num_negatives * B images, under
        no_grad. ``restored`` equals ``self(x)`` bit for bit. How wrong prompts are drawn stands in
        :mod:`cpl.nn.prompt`; the draw is a function of one int64 seed, so the same seed gives the
        same prompts on every device.

        Args:
            x: [B, 3, H, W].
            num_negatives: K >= 1.
            generator: a CPU generator that the seed is drawn from; None: torch's global one.
            seed: the seed itself, instead of drawing it (for torch.compile and CUDA graphs give it
                as an int64 tensor on x's device).
            negative_chunk: how many negatives the decoder takes at a time (None: all); less memory,
                the same draws.

        Returns:
            restored [B, 3, H, W], and negatives [K, B, 3, H, W], which carry no gradient.

        Raises:
            ValueError: the network has no prompts, or uses all of them (k = N), or fewer than 2k;
                num_negatives or negative_chunk below 1.
        """
        self._check(x)
        self._check_negatives(num_negatives, negative_chunk)
        seed = _as_seed(seed, generator, x.device)
        encoded = self.encode(x)
        restored = self._add_residual(x, self.decode(encoded))
        with torch.no_grad():
            encoded, chunks = encoded.detach(), []
            step = negative_chunk or num_negatives
            for first in range(0, num_negatives, step):
                count = min(step, num_negatives - first)
                draw = NegativeDraw(seed, num_negatives, x.shape[0], first, count)
                residual = self.decode(encoded, draw)  # [count * B, 3, H, W]
                chunks.append(self._add_residual(x, residual.unflatten(0, (count, x.shape[0]))))
            return restored, chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def encode(self, x: Tensor) -> Encoded:
        """Encoder and latent; H and W are padded to multiples of 8."""
        level1 = self.encoder_level1(self.patch_embed(pad_to_multiple(x, MULTIPLE)))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        return Encoded(level1, level2, level3, self.latent(self.down3_4(level3)))

    def decode(
        self, encoded: Encoded, draw: NegativeDraw | None = None, tiles: TilePrompts | None = None
    ) -> Tensor:
        """The residual [B, 3, H, W] of the padded size; with ``draw`` [count * B, 3, H, W]."""
        x = self.decode_level(3, encoded.latent, encoded, draw, tiles)
        x = self.decode_level(2, x, encoded, draw, tiles)
        x = self.decode_level(1, x, encoded, draw, tiles)
        return self.output(self.refinement(x))

    def decode_level(
        self,
        level: int,
        x: Tensor,
        encoded: Encoded,
        draw: NegativeDraw | None = None,
        tiles: TilePrompts | None = None,
    ) -> Tensor:
        """From the features that the router of ``level`` sees, [B, C, H/2^level, W/2^level], to those of twice the
        size that the next one sees (after level 1: the refinement)."""
        x = self._mix_prompt(level, x, draw, tiles)
        if level == 3:
            return self.decoder_level3(self.reduce_chan_level3(_join(self.up4_3(x), encoded.level3)))
        if level == 2:
            return self.decoder_level2(self.reduce_chan_level2(_join(self.up3_2(x), encoded.level2)))
        return self.decoder_level1(_join(self.up2_1(x), encoded.level1))

    def _mix_prompt(
        self, level: int, x: Tensor, draw: NegativeDraw | None, tiles: TilePrompts | None
    ) -> Tensor:
        if not self.config.num_prompts:
            return x
        prompt = getattr(self, f"prompt{level}")(x, draw, tiles)
        mixed = getattr(self, f"noise_level{level}")(_join(x, prompt))
        return getattr(self, f"reduce_noise_level{level}")(mixed)

    def _block(self, channels: int, heads: int) -> TransformerBlock:
        return TransformerBlock(channels, heads, self.config.ffn_expansion, self.config.norm_bias)

    def _prompt_module(self, level: int) -> SparsePromptModule:
        config = self.config
        return SparsePromptModule(
            level,
            config.routed_width(level),
            config.num_prompts,
            config.prompt_channels[level - 1],
            config.prompt_sizes[level - 1],
            config.picks,
            config.normalize,
            config.negative_weights,
        )

    @staticmethod
    def _add_residual(x: Tensor, residual: Tensor) -> Tensor:
        """Crops the padding off [..., B, 3, H', W'] first."""
        return x + crop(residual, x.shape[-2], x.shape[-1])

    @staticmethod
    def _check(x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor [B, 3, H, W], got {type(x).__name__}; see cpl.restore")
        if not x.is_floating_point():
            raise TypeError(
                f"x must be floating point in [0, 1], got {x.dtype}; see cpl.restore for other images"
            )
        if x.dim() != 4 or checks.sizes(x)[1] != 3 or 0 in checks.sizes(x):
            raise ValueError(f"x must be [B, 3, H, W] with B, H, W >= 1, got shape {tuple(x.shape)}")

    def _check_negatives(self, num_negatives: int, negative_chunk: int | None) -> None:
        config = self.config
        if config.prompting == "none":
            raise ValueError(f"{self.architecture} has no prompts, so it has no wrong ones; use 'cplir'")
        if config.prompting == "dense":
            raise ValueError(
                f"{self.architecture} uses all its {config.num_prompts} prompts, so none is wrong; "
                "use 'cplir' with top_k <= num_prompts / 2"
            )
        if config.num_prompts < 2 * config.picks:
            raise ValueError(
                f"negatives need num_prompts >= 2 * top_k, got num_prompts={config.num_prompts} and "
                f"top_k={config.picks}; lower top_k or add prompts"
            )
        if num_negatives < 1:
            raise ValueError(
                f"num_negatives must be at least 1, got {num_negatives}; for none call the model itself"
            )
        if negative_chunk is not None and negative_chunk < 1:
            raise ValueError(f"negative_chunk must be at least 1 or None, got {negative_chunk}")


def _as_seed(seed: Tensor | int | None, generator: torch.Generator | None, device: torch.device) -> Tensor:
    if seed is None:
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator must be a CPU generator, got one on {generator.device}")
        seed = torch.randint(2**63 - 1, (), generator=generator, dtype=torch.int64, device="cpu")
    return torch.as_tensor(seed, dtype=torch.int64).to(device, non_blocking=True)


def _join(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate over channels; a batch B beside one of count * B is shared by all, without a copy of its own."""
    if checks.sizes(first)[0] == checks.sizes(second)[0]:
        return torch.cat((first, second), dim=1)
    large, small = max(first.shape[0], second.shape[0]), min(first.shape[0], second.shape[0])
    groups = (
        part.unflatten(0, (large // small, small))
        if part.shape[0] == large
        else part.expand(large // small, *part.shape)
        for part in (first, second)
    )
    return torch.cat(tuple(groups), dim=2).flatten(0, 1)
