"""Parameter names and layouts of the released PyTorch DiT, and ours.

The release stores adaLN-Zero models only: NCHW, Linear weights (out, in), one entry per block. Ours are NHWC, (in, out), with all
blocks stacked on a leading depth axis. The frozen `pos_embed` is recomputed, never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dit.design.config import ModelConfig
from dit.errors import UserError
from dit.model.layers import position_embedding

Flat = dict[str, np.ndarray]
Tree = dict[str, Any]

OUTER = {
    "t_embedder.mlp.0": ("timestep_embedding", "fc1"),
    "t_embedder.mlp.2": ("timestep_embedding", "fc2"),
    "final_layer.adaLN_modulation.1": ("final_layer", "modulation"),
    "final_layer.linear": ("final_layer", "linear"),
}
PER_BLOCK = {
    "attn.qkv": ("attention", "qkv"),
    "attn.proj": ("attention", "proj"),
    "mlp.fc1": ("mlp", "fc1"),
    "mlp.fc2": ("mlp", "fc2"),
    "adaLN_modulation.1": ("modulation",),
}


def _put(tree: Tree, path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _get(tree: Tree, path: tuple[str, ...]) -> np.ndarray:
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


def _require_adaln_zero(config: ModelConfig) -> None:
    if config.block != "adaln_zero":
        raise UserError(f"block '{config.block}' has no official names: the release holds adaln_zero models only")
    if config.qk_norm:
        raise UserError("a model with qk_norm has no official names: the release holds models without it only")


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official state dict and its shape, `pos_embed` included."""
    _require_adaln_zero(config)
    d, p, c, m = config.hidden_size, config.patch_size, config.in_channels, config.mlp_hidden_size
    linears = {
        "t_embedder.mlp.0": (d, 256),
        "t_embedder.mlp.2": (d, d),
        "final_layer.linear": (p * p * config.out_channels, d),
        "final_layer.adaLN_modulation.1": (2 * d, d),
    }
    for i in range(config.depth):
        block = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (m, d), "mlp.fc2": (d, m)}
        block["adaLN_modulation.1"] = (6 * d, d)
        linears |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    result: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config.tokens, d),
        "x_embedder.proj.weight": (d, c, p, p),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (config.num_classes + (config.class_dropout_prob > 0), d),
    }
    for name, shape in linears.items():
        result |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return result


def to_ours(state_dict: Flat, config: ModelConfig) -> Tree:
    """Our parameter tree from an official state dict.

    Raises:
        UserError: naming the tensors that are missing, extra or of another shape.
    """
    expected = shapes(config)
    present = {name: array.shape for name, array in state_dict.items()}
    missing = sorted(expected.keys() - present.keys() - {"pos_embed"})
    extra = sorted(present.keys() - expected.keys())
    wrong = [
        f"{n} is {present[n]}, expected {expected[n]}" for n in expected if n in present and present[n] != expected[n]
    ]
    problems = [f"missing {missing}"] * bool(missing) + [f"extra {extra}"] * bool(extra) + wrong
    if problems:
        raise UserError(f"the state dict does not fit this model: {'; '.join(problems)}")
    tree: Tree = {}
    patch = state_dict["x_embedder.proj.weight"].transpose(2, 3, 1, 0)  # (d, c, p, p) -> (p, p, c, d)
    _put(tree, ("patch_embedding", "kernel"), np.ascontiguousarray(patch.reshape(-1, config.hidden_size)))
    _put(tree, ("patch_embedding", "bias"), state_dict["x_embedder.proj.bias"])
    _put(tree, ("label_embedding", "table", "embedding"), state_dict["y_embedder.embedding_table.weight"])
    for name, path in OUTER.items():
        _put(tree, (*path, "kernel"), np.ascontiguousarray(state_dict[f"{name}.weight"].T))
        _put(tree, (*path, "bias"), state_dict[f"{name}.bias"])
    for name, path in PER_BLOCK.items():
        stack = [f"blocks.{i}.{name}" for i in range(config.depth)]
        _put(tree, ("blocks", *path, "kernel"), np.stack([state_dict[f"{n}.weight"].T for n in stack]))
        _put(tree, ("blocks", *path, "bias"), np.stack([state_dict[f"{n}.bias"] for n in stack]))
    return tree


def to_official(tree: Tree, config: ModelConfig) -> Flat:
    """The official state dict of our parameter tree; the inverse of `to_ours`, bit for bit."""
    _require_adaln_zero(config)
    p, c, d = config.patch_size, config.in_channels, config.hidden_size
    patch = _get(tree, ("patch_embedding", "kernel")).reshape(p, p, c, d).transpose(3, 2, 0, 1)
    flat: Flat = {
        "pos_embed": position_embedding(d, config.input_size // p)[None],
        "x_embedder.proj.weight": patch,
        "x_embedder.proj.bias": _get(tree, ("patch_embedding", "bias")),
        "y_embedder.embedding_table.weight": _get(tree, ("label_embedding", "table", "embedding")),
    }
    for name, path in OUTER.items():
        flat[f"{name}.weight"] = _get(tree, (*path, "kernel")).T
        flat[f"{name}.bias"] = _get(tree, (*path, "bias"))
    for name, path in PER_BLOCK.items():
        kernels, biases = _get(tree, ("blocks", *path, "kernel")), _get(tree, ("blocks", *path, "bias"))
        for i in range(config.depth):
            flat[f"blocks.{i}.{name}.weight"] = kernels[i].T
            flat[f"blocks.{i}.{name}.bias"] = biases[i]
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}
