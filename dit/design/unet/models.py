"""U-Nets by name: the published ones of the paper's Table 6, and size ladders that stand beside DiT's at equal Gflops."""

from __future__ import annotations

import functools
import math
from typing import Any

from dit.design import flops
from dit.design.checks import require_choice
from dit.design.config import DataConfig
from dit.design.unet import UNetConfig
from dit.errors import UserError

_adm = functools.partial(
    UNetConfig, "adm", res_blocks=2, attention=(32, 16, 8), in_channels=3, class_dropout_prob=0.0, ladder="published"
)
_ldm = functools.partial(UNetConfig, "ldm", res_blocks=2, attention=(32, 16, 8), learn_sigma=False, ladder="published")
_WIDE, _NARROW = (256, 256, 512, 512, 1024, 1024), (192, 192, 384, 384, 768, 768)
PUBLISHED: dict[str, UNetConfig] = {
    "ADM-64": _adm(192, (192, 384, 576, 768), res_blocks=3, input_size=64, legacy_heads=False, size="ADM-64"),
    "ADM-128": _adm(256, (256, 256, 512, 768, 1024), input_size=128, num_heads=4, size="ADM-128"),
    "ADM-256": _adm(256, _WIDE, input_size=256, size="ADM-256"),
    "ADM-512": _adm(256, (128, *_WIDE), input_size=512, size="ADM-512"),
    "ADM-upsampler-256": _adm(192, _NARROW, input_size=256, num_heads=4, low_res_size=64, size="ADM-upsampler-256"),
    "ADM-upsampler-512": _adm(
        192, _NARROW, input_size=512, attention=(32, 16), low_res_size=128, size="ADM-upsampler-512"
    ),
    # One row of its table of classes, the 1001st, is a null class; LDM-8 has none, nor has ADM.
    "LDM-4": _ldm(192, (192, 384, 576, 960), input_size=64, in_channels=3, num_heads=1, size="LDM-4"),
    "LDM-8": _ldm(
        256, (256, 512, 1024), input_size=32, in_channels=4, head_channels=32, class_dropout_prob=0.0, size="LDM-8"
    ),
}
"""As released; latent diffusion's see latents of a quarter and an eighth of 256 pixels. Their training's dropout is left out."""

CASCADES = {"ADM-U-256": ("ADM-64", "ADM-upsampler-256"), "ADM-U-512": ("ADM-128", "ADM-upsampler-512")}
"""A base model, whose images an upsampler enlarges."""

TABLE_6: dict[str, int] = {
    "ADM-128": 307, "ADM-256": 1120, "ADM-512": 1983, "LDM-4": 104, "LDM-8": 57,
    "ADM-U-256": 742, "ADM-64": 110, "ADM-upsampler-256": 632, "ADM-U-512": 2813, "ADM-upsampler-512": 2506,
}  # fmt: skip
"""Gflops as printed in Table 6 of the DiT paper: eleven figures, ADM-128's 307 stands there alone and within ADM-U's sum."""

IMAGE_SIZES = {name: 256 for name in ("LDM-4", "LDM-8")} | {
    name: int(name.rpartition("-")[2]) for name in TABLE_6 if name.startswith("ADM")
}
"""Pixels of the images that each model makes."""


def _latent(*channels: int) -> dict[str, Any]:
    """LDM-8's shape at another width, for latents."""
    groups = math.gcd(32, *channels)
    return {"width": channels[0], "channels": channels, "res_blocks": 2, "groups": groups, "head_channels": groups}


def _nano(width: int, *channels: int) -> dict[str, Any]:
    """One res block a level and attention at the lowest alone, in two heads, or in the middle alone: for small images."""
    groups = math.gcd(32, *channels)
    return {"width": width, "channels": channels, "res_blocks": 1, "num_heads": 2, "groups": groups, "context": 32}


LADDERS: dict[str, dict[str, dict[str, Any]]] = {
    "unet": {
        "S": _latent(80, 160, 304),
        "B": _latent(160, 320, 640),
        "L": _latent(304, 608, 1216),
        "XL": _latent(368, 736, 1472),
    },
    "unet-nano-8": {
        "S": _nano(12, 4, 8),
        "B": _nano(12, 12, 10),
        "L": _nano(12, 16, 28),
        "XL": _nano(12, 22, 32),
    },
    "unet-nano-32": {
        "S": _nano(24, 6, 12, 12),
        "B": _nano(40, 10, 20, 20),
        "L": _nano(72, 18, 36, 36),
        "XL": _nano(88, 22, 44, 44),
    },
}
"""Rows whose Gflops are those of DiT of the same size at a patch of 2: of `dit` on 32x32 latents, of `nano` on 8x8 and 32x32 pixels."""

ATTENDED_LEVELS = {"unet": 3, "unet-nano-8": 0, "unet-nano-32": 1}
"""How many levels have attention, from the lowest up; the middle always has it."""


def unet_config(size: str, data: DataConfig, ladder: str = "unet", **changes: Any) -> UNetConfig:
    """A U-Net of a ladder for a data set: latent diffusion's blocks, with a null class and a learned variance as DiT has.

    Raises:
        UserError: for an unknown ladder or size, or an input that the levels do not halve evenly.
    """
    require_choice(ladder, list(LADDERS), "ladder of U-Nets")
    require_choice(size, list(LADDERS[ladder]), "size")
    row = LADDERS[ladder][size]
    levels = len(row["channels"])
    lowest = [data.input_size >> level for level in range(levels)][levels - ATTENDED_LEVELS[ladder] :]
    fields = {
        "kind": "ldm",
        "attention": tuple(lowest),
        "input_size": data.input_size,
        "in_channels": data.in_channels,
        "num_classes": data.num_classes,
        "size": size,
        "ladder": ladder,
    }
    return UNetConfig(**(fields | row | changes))


FAMILIES = {"adm": "ADM", "adm-upsampler": "ADM-upsampler", "adm-u": "ADM-U", "ldm-4": "LDM-4", "ldm-8": "LDM-8"}
"""How the published ones are asked for."""


def published(family: str, image_size: int | None = None) -> list[UNetConfig]:
    """The published models of a family ("adm", "adm-upsampler", "adm-u", "ldm-4", "ldm-8"); two of "adm-u", which is a cascade.

    Args:
        image_size: pixels of the images it makes; latent diffusion's is 256.

    Raises:
        UserError: for a family or a size that was not published.
    """
    require_choice(family, [*FAMILIES, *LADDERS], "family of U-Nets")
    stem = FAMILIES[family]
    names = {IMAGE_SIZES[name]: name for name in TABLE_6 if name in (stem, f"{stem}-{IMAGE_SIZES[name]}")}
    image_size = 256 if image_size is None else image_size
    if image_size not in names:
        sizes = ", ".join(map(str, sorted(names)))
        raise UserError(f"no {stem} for images of {image_size} px was published: expected one of {sizes}")
    return [PUBLISHED[name] for name in CASCADES.get(names[image_size], (names[image_size],))]


def paper_gflops(models: list[UNetConfig]) -> float:
    """Gflops of one pass through each model under rule H1, as Table 6 counts them; one multiply-add is one flop."""
    return sum(flops.gflops(model, paper=True) for model in models)
