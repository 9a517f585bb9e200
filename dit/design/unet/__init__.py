"""The U-Nets that diffusion transformers were measured against.

One record describes both kinds, ADM's (Dhariwal & Nichol 2021) and latent diffusion's (Rombach et al. 2022). `channels` are those of each
level; from a level to the next the resolution halves. Nothing here imports JAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dit.design.checks import require_choice, require_kind, require_number, require_positive, require_whole
from dit.errors import UserError

Kind = Literal["adm", "ldm"]


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net. `size` and `ladder` name a row of `dit.design.unet.models.LADDERS` or a published model, or say "custom".

    Attributes:
        kind: "adm" has res blocks that resample, scale and shift, and plain attention; "ldm" has strided convolutions, shifts alone,
            and transformer layers that attend to the class embedding.
        width: channels of the timestep features; the embedding has four times as many.
        channels: of each level, from the input's resolution down.
        res_blocks: of each level on the way down; on the way up there is one more.
        attention: resolutions, in the model's pixels, at which res blocks are followed by attention; the middle always has it.
        num_heads: of every attention; 0 takes heads of `head_channels` each.
        legacy_heads: "adm": whether a head's queries, keys and values are neighbours among the 3C channels (all but the 64-pixel model).
        groups: of every GroupNorm.
        context: channels of the class embedding that "ldm" attends to.
        low_res_size: of an upsampler, the side of the image that it gets beside the noised one; 0 for all others.
        class_dropout_prob: above 0, one row more of class embeddings is the null class. ADM had none.
    """

    kind: Kind
    width: int
    channels: tuple[int, ...]
    res_blocks: int
    attention: tuple[int, ...]
    input_size: int
    in_channels: int
    num_classes: int = 1000
    head_channels: int = 64
    num_heads: int = 0
    legacy_heads: bool = True
    groups: int = 32
    context: int = 512
    low_res_size: int = 0
    learn_sigma: bool = True
    class_dropout_prob: float = 0.1
    size: str = "custom"
    ladder: str = "custom"

    def __post_init__(self) -> None:
        require_choice(self.kind, get_args(Kind), "kind of U-Net")
        require_positive(self, "width", "res_blocks", "input_size", "in_channels", "num_classes", "groups", "context")
        for name in ("head_channels", "num_heads", "low_res_size"):
            require_whole(self, name)
        require_kind(self, bool, "legacy_heads", "learn_sigma")
        require_kind(self, str, "size", "ladder")
        require_number(self, "class_dropout_prob", low=0, high=1, ends="[)")
        for name in ("channels", "attention"):
            if not all(type(each) is int and each > 0 for each in getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)!r}: expected positive whole numbers")
        if self.width % 2:
            raise UserError(f"width is {self.width}: expected an even number, half of it cosines and half sines")
        self._check_levels()
        self._check_heads()

    def _check_levels(self) -> None:
        halvings = len(self.channels) - 1
        if halvings < 0:
            raise UserError("channels is empty: expected the channels of each level")
        if self.input_size % 2**halvings:
            raise UserError(
                f"an input of {self.input_size} px does not halve evenly over {halvings + 1} levels: expected a multiple of {2**halvings}"
            )
        for channels in self.channels:
            if channels % self.groups:
                raise UserError(
                    f"{channels} channels do not divide into {self.groups} groups of a GroupNorm: expected a multiple of {self.groups}"
                )
        for size in self.attention:
            if size not in self.resolutions:
                raise UserError(
                    f"attention at {size} px: this U-Net has no such resolution, expected some of {', '.join(map(str, self.resolutions))}"
                )

    def _check_heads(self) -> None:
        if not self.num_heads and not self.head_channels:
            raise UserError("num_heads and head_channels are both 0: give one of them")
        for channels in self.attended:
            part = self.num_heads or self.head_channels
            if channels % part:
                what = "heads" if self.num_heads else "channels a head"
                raise UserError(
                    f"attention over {channels} channels does not divide into {part} {what}: choose a divisor"
                )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each level, in the model's pixels."""
        return tuple(self.input_size >> level for level in range(len(self.channels)))

    @property
    def attended(self) -> tuple[int, ...]:
        """Channels that some attention is over: of the levels that have it, and of the middle."""
        levels = zip(self.resolutions, self.channels)
        return *(channels for size, channels in levels if size in self.attention), self.channels[-1]

    def heads(self, channels: int) -> int:
        """Heads of an attention over so many channels."""
        return self.num_heads or channels // self.head_channels

    @property
    def growth(self) -> int:
        """What the weights of the blocks grow with."""
        return self.res_blocks * sum(channels**2 for channels in self.channels)

    @property
    def head_dim(self) -> int:
        """Channels of the widest head."""
        return max(channels // self.heads(channels) for channels in self.attended)

    @property
    def block(self) -> str:
        """What stands in the column `block`."""
        return "unet"

    @property
    def patch_size(self) -> int:
        """What stands in the column `patch_size`: 0, a U-Net sees every pixel."""
        return 0

    @property
    def tokens(self) -> int:
        """Positions at the input's resolution."""
        return self.input_size**2

    @property
    def out_channels(self) -> int:
        """Channels the model predicts: the noise, and with `learn_sigma` as many for the variance."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def seen_channels(self) -> int:
        """Channels that the first convolution sees: an upsampler's are those of both images."""
        return self.in_channels * (2 if self.low_res_size else 1)

    @property
    def class_rows(self) -> int:
        """Rows of the table of class embeddings."""
        return self.num_classes + (self.class_dropout_prob > 0)
