"""Which U-Net a release's tensors are of, read off their names and shapes.

Three things leave no trace: the input's side, how channels are cut into heads, and whether the last class is a null one. Those of a
published model are known, others have to be declared.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from dit.design.unet import UNetConfig
from dit.design.unet.models import PUBLISHED
from dit.errors import UserError
from dit.weights.official_config import Declared
from dit.weights.unet_names import CLASSES, NETWORK


def is_unet(tensors: dict[str, np.ndarray]) -> bool:
    """Whether the names are of a U-Net, alone or within a checkpoint of latent diffusion."""
    return any(name.removeprefix(NETWORK).startswith("input_blocks.0.") for name in tensors)


def infer_unet(tensors: dict[str, np.ndarray], declared: Declared, source: str) -> UNetConfig:
    """The configuration whose tensors these are; `tensors` are the network's and its class embedder's.

    Raises:
        UserError: if a tensor that tells is missing, or something that no tensor tells is not declared.
    """
    if "x_embedder.proj.weight" in tensors:
        raise UserError(f"{source} holds a DiT, not a U-Net: give a file of ADM's or latent diffusion's")
    if not is_unet(tensors):
        raise UserError(f"{source} does not hold a U-Net: tensor 'input_blocks.0.0.weight' is missing")
    kind = "ldm" if any(name.startswith(NETWORK) for name in tensors) else "adm"
    prefix = NETWORK if kind == "ldm" else ""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or not tensors[name].ndim:
            raise UserError(f"{source} does not hold a U-Net with classes: tensor '{name}' is missing")
        return tensors[name].shape

    def there(start: str) -> bool:
        return any(name.startswith(prefix + start) for name in tensors)

    rows = shape(CLASSES if kind == "ldm" else "label_emb.weight")[0]
    stages = sum(there(f"output_blocks.{number}.") for number in range(len(tensors)))
    each = _blocks_of_a_level(there, stages)  # on the way up, and down with the step to the next level
    first = [f"input_blocks.{1 + level * each}" for level in range(stages // each)]
    seen = shape(f"{prefix}input_blocks.0.0.weight")[1]
    made = shape(f"{prefix}out.2.weight")[0]
    upsamples = kind == "adm" and seen == made and not seen % 2
    attended = [there(f"{one}.1.") for one in first]
    found: dict[str, Any] = {
        "kind": kind,
        "width": shape(f"{prefix}time_embed.0.weight")[1],
        "channels": tuple(shape(f"{prefix}{one}.0.out_layers.3.weight")[0] for one in first),
        "res_blocks": each - 1,
        "in_channels": seen // 2 if upsamples else seen,
        **({"context": shape(CLASSES)[1]} if kind == "ldm" else {}),
        "learn_sigma": upsamples or made == 2 * seen,
    }
    known = _published(found, attended, upsamples)
    return _completed(found, attended, known, rows, declared, source, upsamples)


def _blocks_of_a_level(there: Any, stages: int) -> int:
    """Res blocks of a level on the way up: those until the first step to the next level."""
    for number in range(stages):
        for part in (1, 2):
            if there(f"output_blocks.{number}.{part}.in_layers.") or there(f"output_blocks.{number}.{part}.conv."):
                return number + 1
    return stages


def _published(found: dict[str, Any], attended: list[bool], upsamples: bool) -> UNetConfig | None:
    for model in PUBLISHED.values():
        same = all(getattr(model, name) == value for name, value in found.items())
        levels = [size in model.attention for size in model.resolutions]
        if same and levels == attended and bool(model.low_res_size) == upsamples:
            return model
    return None


def _completed(
    found: dict[str, Any],
    attended: list[bool],
    known: UNetConfig | None,
    rows: int,
    declared: Declared,
    source: str,
    upsamples: bool,
) -> UNetConfig:
    """With what no tensor tells: the published model's, or as declared."""
    classes = declared.num_classes
    if classes is None:
        classes = known.num_classes if known and known.class_rows == rows else rows
    if rows - classes not in (0, 1):
        raise UserError(
            f"{source} has {rows} rows of classes, so --num-classes {classes} cannot be: expected {rows - 1} or {rows}"
        )
    told: dict[str, Any] = {"num_classes": classes, "class_dropout_prob": 0.1 if rows > classes else 0.0}
    if known and declared.input_size in (None, known.input_size):
        as_told: dict[str, Any] = {} if declared.num_heads is None else {"num_heads": declared.num_heads}
        return dataclasses.replace(known, **told, **as_told)
    size = declared.input_size
    if size is None:
        raise UserError(
            f"{source} is a U-Net of no published shape, so its input size is unknown: give it with --input-size"
        )
    if declared.num_heads is None and declared.head_channels is None:
        raise UserError(
            f"{source} is a U-Net of no published shape: give its attention's --num-heads, or the channels of a head with --head-channels"
        )
    heads: dict[str, Any] = {"num_heads": declared.num_heads or 0, "head_channels": declared.head_channels or 0}
    attention = tuple(size >> level for level, has in enumerate(attended) if has)
    low: dict[str, Any] = {"low_res_size": size // 4} if upsamples else {}
    groups = math.gcd(32, *found["channels"])
    return UNetConfig(
        **found, **told, **heads, **low, groups=groups, attention=attention, input_size=size, legacy_heads=size != 64
    )
