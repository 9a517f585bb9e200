"""diffusers' `DiTTransformer2DModel` and the official DiT: the same tensors under other names.

diffusers splits the fused qkv projection, and every block holds its own copy of the timestep and label embedders, of which its last layer
uses block 0's. Its modulation chunks (shift, scale, gate of attention, then of the MLP) and its final (shift, scale) are in the
official order. Source: huggingface/diffusers `scripts/convert_dit_to_diffusers.py`, `normalization.AdaLayerNormZero` and
`dit_transformer_2d.py`. Its sinusoids divide by 127 where the release divides by 128, so its own outputs differ slightly from both.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dit.errors import UserError

Flat = dict[str, np.ndarray]

_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_PER_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")


def is_diffusers(tensors: Flat) -> bool:
    """Whether the names are diffusers'."""
    return any(name.startswith("transformer_blocks.") for name in tensors)


def check_config(config: dict[str, Any], source: str) -> None:
    """Refuse a config.json whose network is not a DiT of the released kind.

    Raises:
        UserError: naming the entry.
    """
    expected = {
        "_class_name": _CLASSES,
        "norm_type": ("ada_norm_zero",),
        "activation_fn": ("gelu-approximate",),
        "norm_elementwise_affine": (False,),
    }
    for name, values in expected.items():
        if config.get(name, values[0]) not in values:
            raise UserError(
                f"{source}: {name} is {config[name]!r}, expected {values[0]!r}: this is no DiT of the released kind"
            )


def to_official(tensors: Flat) -> Flat:
    """The official state dict of a diffusers one. What has no official name keeps its own, to be reported as extra.

    Raises:
        UserError: if q, k or v lacks its like, or two blocks hold different embedders.
    """
    official: Flat = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "pos_embed.pos_embed":
            official["pos_embed"] = tensor
        elif match is None:
            layer, _, kind = name.rpartition(".")
            official[f"{_OUTER.get(layer, layer)}.{kind}"] = tensor
        else:
            block, layer, kind = match.groups()
            if layer in _EMBEDDERS:
                _check_copy(tensors, name, f"transformer_blocks.0.{layer}.{kind}")
                official[f"{_EMBEDDERS[layer]}.{kind}"] = tensor
            elif layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
                parts = [f"transformer_blocks.{block}.attn1.to_{letter}.{kind}" for letter in "qkv"]
                missing = [part for part in parts if part not in tensors]
                if missing:
                    raise UserError(f"the state dict does not fit this model: missing {missing}")
                official[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate([tensors[part] for part in parts])
            else:
                known = layer in _PER_BLOCK
                official[f"blocks.{block}.{_PER_BLOCK[layer]}.{kind}" if known else name] = tensor
    return official


def _check_copy(tensors: Flat, name: str, first: str) -> None:
    if first not in tensors:
        raise UserError(f"the state dict does not fit this model: missing ['{first}']")
    if not np.array_equal(tensors[name], tensors[first]):
        raise UserError(
            f"{name} differs from block 0's: the official DiT has one embedder for all blocks, so this model cannot be one of its kind"
        )
