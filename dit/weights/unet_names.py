"""Parameter names and layouts of the released U-Nets, ADM's and latent diffusion's, and ours.

A name follows from the path of the parameter: `encoder/2/res/conv1/kernel` is `input_blocks.3.0.in_layers.2.weight`. The releases are
NCHW with weights (out, in), as convolutions of one pixel where ours are matrices. Latent diffusion's checkpoints hold the network under
`model.diffusion_model.`, its average under `model_ema.` without dots, the class embedder under `cond_stage_model.`, and the autoencoder,
which is left alone.
"""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from dit.design.unet import UNetConfig
from dit.errors import UserError
from dit.model.unet import UNet
from dit.weights.official import Flat, Tree

NETWORK = "model.diffusion_model."
CLASSES = "cond_stage_model.embedding.weight"
AVERAGE = "model_ema."

_OUTSIDE = {
    "fc1": "time_embed.0",
    "fc2": "time_embed.2",
    "entry": "input_blocks.0.0",
    "norm": "out.0",
    "exit": "out.2",
    "label_embedding/table": "label_emb",
}
_RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
_WITHIN = "transformer_blocks.0."
_ATTENTION = {
    "norm": "norm",
    "qkv": "qkv",
    "proj": "proj_out",
    "inward": "proj_in",
    "outward": "proj_out",
    "norm1": _WITHIN + "norm1",
    "norm_cross": _WITHIN + "norm2",
    "norm2": _WITHIN + "norm3",
    "fc1": _WITHIN + "ff.net.0.proj",
    "fc2": _WITHIN + "ff.net.2",
    **{f"attention/{one}": f"{_WITHIN}attn1.to_{one}" for one in "qkv"},
    **{f"cross_attention/{one}": f"{_WITHIN}attn2.to_{one}" for one in "qkv"},
    "attention/proj": _WITHIN + "attn1.to_out.0",
    "cross_attention/proj": _WITHIN + "attn2.to_out.0",
}
_ORDER = ("res", "attention", "res2", "step")
"""Parts of a stage as the releases number them."""
_AXES = {"skip": 4, "inward": 4, "outward": 4, "qkv": 3}
"""Axes of the releases' weights that are convolutions of one pixel, by our module; ADM's attention has one spatial axis."""


def official_names(config: UNetConfig) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Every parameter's path -> its name in the release, its shape there, and its shape here."""
    _, params = nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0))))
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf.shape
        for path, leaf in leaves
    }
    return {path: (*_official(path, shape, config, shapes), shape) for path, shape in shapes.items()}


def _official(
    path: str, shape: tuple[int, ...], config: UNetConfig, all_paths: dict[str, tuple[int, ...]]
) -> tuple[str, tuple[int, ...]]:
    module, _, leaf = path.rpartition("/")
    name = _module(module, config, all_paths)
    if leaf == "kernel":
        axes = 3 if config.kind == "adm" and module.endswith("attention/proj") else _AXES.get(module.split("/")[-1], 2)
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else (shape[1], shape[0], *[1] * (axes - 2))
    if config.kind == "ldm":
        name = CLASSES.removesuffix(".weight") if leaf == "embedding" else NETWORK + name
    return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", shape


def _module(module: str, config: UNetConfig, all_paths: dict[str, tuple[int, ...]]) -> str:
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    where, *rest = module.split("/")
    stage = where
    if where != "middle":
        stage, rest = f"{where}/{rest[0]}", rest[1:]
    part, *inner = rest
    parts = [one for one in _ORDER if any(path.startswith(f"{stage}/{one}/") for path in all_paths)]
    number = int(stage.split("/")[1]) if where != "middle" else 0
    block = {
        "encoder": f"input_blocks.{number + 1}",
        "middle": "middle_block",
        "decoder": f"output_blocks.{number}",
    }[where]
    if part == "attention":
        found = _ATTENTION["/".join(inner)]
    elif part == "step" and config.kind == "ldm":
        found = "op" if where == "encoder" else "conv"
    else:
        found = _RES_BLOCK[inner[0]]
    return f"{block}.{parts.index(part)}.{found}"


def of_release(tensors: Flat) -> Flat:
    """The network's tensors in a release's file: of latent diffusion's the averaged ones where it has them, without the autoencoder."""
    names = [name for name in tensors if name.startswith(NETWORK)]
    if not names:
        return tensors
    average = {name: AVERAGE + name.removeprefix("model.").replace(".", "") for name in names}
    if not all(each in tensors for each in average.values()):
        average = {name: name for name in names}
    found = {name: tensors[each] for name, each in average.items()}
    return found | {name: tensors[name] for name in [CLASSES] if name in tensors}


def to_ours(tensors: Flat, config: UNetConfig) -> Tree:
    """Our parameter tree from a release's tensors.

    Raises:
        UserError: naming the tensors that are missing, extra or of another shape.
    """
    expected = {name: (path, there, here) for path, (name, there, here) in official_names(config).items()}
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [
        f"{name} is {tensors[name].shape}, expected {there}"
        for name, (_, there, _) in expected.items()
        if name in tensors and tensors[name].shape != there
    ]
    problems = [f"missing {missing}"] * bool(missing) + [f"extra {extra}"] * bool(extra) + wrong
    if problems:
        raise UserError(f"the state dict does not fit this U-Net: {'; '.join(problems)}")
    tree: Tree = {}
    for name, (path, _, here) in expected.items():
        *above, leaf = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        value = tensors[name]
        if leaf == "kernel":
            value = value.transpose(2, 3, 1, 0) if len(here) == 4 else value.reshape(value.shape[:2]).T
        place[leaf] = np.ascontiguousarray(value)
    return tree


def to_official(tree: Tree, config: UNetConfig) -> Flat:
    """The release's tensors of our parameter tree; the inverse of `to_ours`, bit for bit."""
    flat: Flat = {}
    for path, (name, there, here) in official_names(config).items():
        value = tree
        for part in path.split("/"):
            value = value[part]
        array = np.asarray(value)
        if path.endswith("/kernel"):
            array = array.transpose(3, 2, 0, 1) if len(here) == 4 else array.T.reshape(there)
        flat[name] = np.ascontiguousarray(array)
    return flat
