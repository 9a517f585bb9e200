"""Which model a state dict under the official names is of, read off the shapes of its tensors.

Two things leave no trace in the shapes: the number of heads, and whether the last label is the null one. They are the release's
unless declared. Nothing here looks at values, except to refuse position embeddings other than the release's.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from dit.design.config import DATASETS, LADDERS, DataConfig, Model, ModelConfig
from dit.errors import UserError
from dit.model.layers import position_embedding

_LATENT_PIXELS = 8
"""Pixels a latent position stands for, along one side: Stable Diffusion's autoencoder, which the release was trained with."""


@dataclass(frozen=True)
class Declared:
    """What the user says of a file that its tensors do not tell; `key` is which part of it to take."""

    num_heads: int | None = None
    input_size: int | None = None
    num_classes: int | None = None
    key: str | None = None
    head_channels: int | None = None


def infer_model(tensors: dict[str, np.ndarray], declared: Declared, source: str) -> ModelConfig:
    """The configuration whose tensors these are.

    Heads leave no trace in the shapes: they are those of the paper's model of that width, or declared. The last row of the label table
    is the null label, as in the release, unless as many classes are declared as there are rows.

    Raises:
        UserError: if a tensor that tells is missing or misshapen, or something that no tensor tells is not declared.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if "time_embed.0.weight" in tensors or "model.diffusion_model.time_embed.0.weight" in tensors:
            raise UserError(f"{source} holds a U-Net, not a DiT: give a file of DiT's")
        if name not in tensors:
            raise UserError(f"{source} does not hold a DiT: tensor '{name}' is missing")
        if tensors[name].ndim != rank:
            raise UserError(
                f"{source} does not hold a DiT: tensor '{name}' has shape {tensors[name].shape}, expected {rank} axes"
            )
        if 0 in tensors[name].shape:
            raise UserError(
                f"{source} does not hold a DiT: tensor '{name}' has shape {tensors[name].shape}, an empty one"
            )
        return tensors[name].shape

    width, channels, patch_size, _ = shape("x_embedder.proj.weight", 4)
    rows = shape("y_embedder.embedding_table.weight", 2)[0]
    hidden = shape("blocks.0.mlp.fc1.weight", 2)[0]
    out_channels, odd = divmod(shape("final_layer.linear.weight", 2)[0], patch_size**2)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if odd or out_channels not in (channels, 2 * channels):
        raise UserError(
            f"{source}: tensor 'final_layer.linear.weight' has {shape('final_layer.linear.weight', 2)[0]} rows, expected "
            f"{patch_size**2 * channels} or {patch_size**2 * channels * 2} for {channels} channels in patches of {patch_size}"
        )
    num_classes = rows - 1 if declared.num_classes is None else declared.num_classes
    if rows - num_classes not in (0, 1):
        raise UserError(
            f"{source} has {rows} rows of labels, so --num-classes {num_classes} cannot be: expected {rows - 1} or {rows}"
        )
    size, heads = _row(depth, width)
    num_heads = declared.num_heads or heads
    if num_heads is None:
        raise UserError(
            f"{source} has a width of {width}, which no model of the paper has: give its number of heads with --num-heads"
        )
    return ModelConfig(
        "adaln_zero",
        patch_size=patch_size,
        depth=depth,
        hidden_size=width,
        num_heads=num_heads,
        input_size=_input_size(tensors, patch_size, declared, source),
        in_channels=channels,
        num_classes=num_classes,
        mlp_ratio=hidden / width,
        learn_sigma=out_channels == 2 * channels,
        class_dropout_prob=0.1 if rows > num_classes else 0.0,
        size=size or "custom",
        ladder="dit" if size else "custom",
    )


def _row(depth: int, width: int) -> tuple[str | None, int | None]:
    """The name of the paper's model of this depth and width, and the heads of its models of this width."""
    sizes = LADDERS["dit"].items()
    name = next((name for name, size in sizes if (size.depth, size.hidden_size) == (depth, width)), None)
    return name, next((size.num_heads for _, size in sizes if size.hidden_size == width), None)


def _input_size(tensors: dict[str, np.ndarray], patch_size: int, declared: Declared, source: str) -> int:
    if "pos_embed" not in tensors:
        if declared.input_size is None:
            raise UserError(
                f"{source} has no pos_embed, so its input size is unknown: give it with --input-size (32 for 256 px)"
            )
        return declared.input_size
    tokens = tensors["pos_embed"].shape[1] if tensors["pos_embed"].ndim == 3 else 0
    grid = round(tokens**0.5)
    if not tokens or grid**2 != tokens:
        raise UserError(
            f"{source}: tensor 'pos_embed' has shape {tensors['pos_embed'].shape}, expected (1, a square, width)"
        )
    if declared.input_size not in (None, grid * patch_size):
        raise UserError(
            f"{source} was made for an input of {grid * patch_size}, not {declared.input_size}: leave --input-size out"
        )
    return grid * patch_size


def check_positions(tensors: dict[str, np.ndarray], model: ModelConfig, source: str) -> None:
    """Positions are recomputed, never read: others than the release's would be another model.

    Raises:
        UserError: if the file holds others.
    """
    given = tensors.get("pos_embed")
    ours = position_embedding(model.hidden_size, model.input_size // model.patch_size)[None]
    # Loose enough for a file in half precision, or in 8-bit floats, whose step at 1 is an eighth or a quarter.
    slack = (
        max(0.01, float(ml_dtypes.finfo(given.dtype).eps)) if given is not None and given.dtype.kind in "fV" else 0.01
    )
    if given is not None and (given.shape != ours.shape or np.abs(given.astype(np.float32) - ours).max() > slack):
        raise UserError(
            f"{source}: tensor 'pos_embed' is not the release's sine-cosine embedding {ours.shape}: this is another model"
        )


def infer_data(model: Model) -> DataConfig:
    """The known data set of the model's input, else latents of Stable Diffusion's autoencoder (4 channels), else pixels."""
    seen = (model.input_size, model.in_channels, model.num_classes)
    for data in DATASETS.values():
        if data.is_latent and (data.input_size, data.in_channels, data.num_classes) == seen:
            return data
    size = model.input_size * (_LATENT_PIXELS if model.in_channels == 4 else 1)
    return DataConfig(f"images{size}", size, *seen)
