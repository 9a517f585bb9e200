"""Loads an `AutoencoderKL` from files on this machine: a diffusers folder, or a weights file beside its config.json.

Nothing is ever downloaded. Both namings of the attention tensors are read (the hub's `sd-vae-ft-*` files still use the older
`query`, `key`, `value`, `proj_attn`). Every tensor that is missing, left over or of another shape is named.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit.design.config import digest
from dit.errors import UserError
from dit.weights.torch_pickle import find_weights, read_part, weights_sha256
from dit.weights.vae import LATENT_SCALE, AutoencoderKL, VaeConfig

_STEMS = ("diffusion_pytorch_model", "model")
_LARGEST = 2**15
_ANCHORS = ("decoder.conv_in.weight",)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_files(path: str | Path) -> tuple[Path, Path]:
    """(config, weights) of an autoencoder given its diffusers folder (or a model folder with `vae/`), or its weights file.

    For a weights file the config is `config.json` in its folder, or the file's own name with `.json`.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").exists() else path
        weights = find_weights(folder, _STEMS)
        if weights is None:
            raise UserError(
                f"no autoencoder in {folder}: expected config.json and {_STEMS[0]}.safetensors or .bin; "
                "download stabilityai/sd-vae-ft-mse or sd-vae-ft-ema to a folder first (nothing is fetched for you)"
            )
    elif path.exists():
        folder, weights = path.parent, path
    else:
        raise UserError(f"no autoencoder at {path}: expected a diffusers folder or a weights file on this machine")
    config = next((c for c in (weights.with_suffix(".json"), folder / "config.json") if c.exists()), None)
    if config is None:
        raise UserError(f"no config.json beside {weights}; copy the one published with the weights next to them")
    return config, weights


def read_config(path: Path) -> VaeConfig:
    """A `VaeConfig` from diffusers' config.json; values that change the network and are not known here are errors."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the autoencoder's config {path}: {error}") from error
    if not isinstance(raw, dict) or "block_out_channels" not in raw:
        raise UserError(f"{path} is not an AutoencoderKL config: it has no block_out_channels")
    if raw.get("act_fn", "silu") not in ("silu", "swish"):
        raise UserError(f"{path}: act_fn {raw['act_fn']!r} is not known; expected 'silu'")
    widths = tuple(raw["block_out_channels"]) if isinstance(raw["block_out_channels"], list) else ()
    if not 1 <= len(widths) <= 16:
        raise UserError(f"{path}: block_out_channels holds {len(widths)} widths, expected 1 to 16")
    sizes = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
    numbers = {**{name: raw.get(name, 1) for name in sizes}, **{f"block_out_channels {w!r:.20}": w for w in widths}}
    wrong = next(
        (name for name, value in numbers.items() if type(value) is not int or not 1 <= value <= _LARGEST), None
    )
    if wrong is not None or numbers["layers_per_block"] > 64:
        raise UserError(f"{path}: {wrong or 'layers_per_block'} is no number that an autoencoder has")
    config = VaeConfig(
        in_channels=raw.get("in_channels", 3),
        out_channels=raw.get("out_channels", 3),
        latent_channels=raw.get("latent_channels", 4),
        block_out_channels=widths,
        layers_per_block=raw.get("layers_per_block", 1),
        norm_num_groups=raw.get("norm_num_groups", 32),
        down_attention=_attention(path, raw, "down_block_types", "DownEncoderBlock2D", len(widths)),
        up_attention=_attention(path, raw, "up_block_types", "UpDecoderBlock2D", len(widths)),
        mid_attention=raw.get("mid_block_add_attention", True),
        quant_conv=raw.get("use_quant_conv", True),
        post_quant_conv=raw.get("use_post_quant_conv", True),
        scaling_factor=_number(path, raw, "scaling_factor", LATENT_SCALE),
        shift_factor=_number(path, raw, "shift_factor", 0.0),
    )
    if config.scaling_factor <= 0:
        raise UserError(f"{path}: scaling_factor is {config.scaling_factor:g}, expected a number above 0")
    for field in ("latents_mean", "latents_std"):
        if raw.get(field) is not None:
            raise UserError(f"{path}: {field} scales each channel by itself, which is not known here; expected null")
    bad = next((width for width in widths if width % config.norm_num_groups), None)
    if bad is not None:
        raise UserError(
            f"{path}: block_out_channels {bad} is not divisible by norm_num_groups {config.norm_num_groups}"
        )
    return config


def _number(path: Path, raw: dict[str, Any], field: str, default: float) -> float:
    value = default if raw.get(field) is None else raw[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {field} is {value!r}, expected a number")
    return float(value)


def _attention(path: Path, raw: dict[str, Any], field: str, plain: str, blocks: int) -> tuple[bool, ...]:
    kinds = raw.get(field, [plain] * blocks)
    if not isinstance(kinds, list):
        raise UserError(f"{path}: {field} is {kinds!r:.80}, expected a list of {blocks} names")
    wrong = next((kind for kind in kinds if kind not in (plain, f"Attn{plain}")), None)
    if wrong is not None:
        raise UserError(f"{path}: {field} {wrong!r} is not known; expected '{plain}' or 'Attn{plain}'")
    if len(kinds) != blocks:
        raise UserError(f"{path}: {len(kinds)} {field} for {blocks} block_out_channels; expected one each")
    return tuple(kind != plain for kind in kinds)


def load_vae(
    path: str | Path, precision: jax.lax.Precision | None = jax.lax.Precision.HIGHEST
) -> tuple[AutoencoderKL, str]:
    """The autoencoder at `path` (see `find_files`) in float32, and its identity.

    That is the sha256 of its weights file, hashed again with whatever else decides its images: another scale and shift than Stable
    Diffusion's, or a part of the file that must be named.
    """
    config_path, weights_path = find_files(path)
    config = read_config(config_path)
    read, part = read_part(weights_path, _ANCHORS)
    tensors = {_new_name(name): tensor for name, tensor in read.items()}
    model = from_tensors(config, tensors, precision, source=str(weights_path))
    factors, label = (config.scaling_factor, config.shift_factor), "" if part.usual else part.label
    sha256 = weights_sha256(weights_path)
    plain = factors == (LATENT_SCALE, 0.0) and not label
    return model, sha256 if plain else digest({"sha256": sha256, "factors": factors, "part": label}, 64)


class _NoRandomness:
    """Stands for `nnx.Rngs` where only shapes matter: tracing 248 real streams costs 8 s, this half a second."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_vae(config: VaeConfig, precision: jax.lax.Precision | None = None) -> AutoencoderKL:
    """The module with shapes in place of parameters."""
    return nnx.eval_shape(lambda: AutoencoderKL(config, precision=precision, rngs=_NoRandomness()))


def tensor_shapes(config: VaeConfig) -> dict[str, tuple[int, ...]]:
    """diffusers' name -> shape, in its layout, of every tensor of an autoencoder."""
    flat = nnx.to_flat_state(nnx.state(abstract_vae(config)))
    return {torch_name(keys): to_torch_shape(variable.shape) for keys, variable in flat}


def from_tensors(
    config: VaeConfig,
    tensors: dict[str, np.ndarray],
    precision: jax.lax.Precision | None = jax.lax.Precision.HIGHEST,
    source: str = "the weights",
) -> AutoencoderKL:
    """An autoencoder with `tensors`, named and laid out as in current diffusers (linear (out, in), conv (out, in, kh, kw))."""
    graph, state = nnx.split(abstract_vae(config, precision))
    flat = nnx.to_flat_state(state)
    slots = {torch_name(keys): variable for keys, variable in flat}
    missing, extra = sorted(slots.keys() - tensors.keys()), sorted(tensors.keys() - slots.keys())
    if missing:
        raise UserError(f"{source} does not fit its config: {_some(missing)} missing")
    if extra:
        raise UserError(f"{source} does not fit its config: {_some(extra)} not expected")
    filled = []
    for keys, variable in flat:
        name = torch_name(keys)
        value = to_flax_layout(tensors[name], len(variable.shape))
        if value.shape != variable.shape:
            expected = to_torch_shape(variable.shape)
            raise UserError(f"{source}: {name} has shape {tensors[name].shape}; its config expects {expected}")
        filled.append((keys, variable.replace(jnp.asarray(value.astype(np.float32)))))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def torch_name(keys: tuple[Any, ...]) -> str:
    """diffusers' tensor name of a parameter at path `keys` of the NNX module."""
    *path, last = map(str, keys)
    return ".".join([*path, {"kernel": "weight", "scale": "weight"}.get(last, last)])


def to_flax_layout(tensor: np.ndarray, rank: int) -> np.ndarray:
    """(out, in) to (in, out), (out, in, kh, kw) to (kh, kw, in, out); the oldest files hold attention as 1x1 convolutions."""
    if rank == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T


def to_torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a diffusers file of a parameter of `shape` here."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _new_name(name: str) -> str:
    """The current name of an attention tensor that an older diffusers wrote."""
    *path, layer, kind = name.split(".")
    return ".".join([*path, _OLD_ATTENTION[layer], kind]) if layer in _OLD_ATTENTION else name


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
