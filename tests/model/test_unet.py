"""U-Nets against the original PyTorch modules' outputs and gradients, and against invariants of their own."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit.design.unet import UNetConfig
from dit.model.compute import Compute
from dit.model.unet import UNet
from dit.weights import unet_names

GOLDEN = Path(__file__).parents[1] / "golden"


def config_of(arguments, kind):
    """Our configuration from the original constructor's arguments."""
    size = arguments["image_size"]
    channels = tuple(arguments["model_channels"] * times for times in arguments["channel_mult"])
    out, seen = arguments["out_channels"], arguments["in_channels"]
    return UNetConfig(
        kind,
        arguments["model_channels"],
        channels,
        arguments["num_res_blocks"],
        tuple(size // each for each in arguments["attention_resolutions"]),
        size,
        seen,
        num_classes=arguments.get("num_classes", 2),
        head_channels=arguments["num_head_channels"],
        context=arguments.get("context_dim", 512),
        learn_sigma=out == 2 * seen,
        class_dropout_prob=0.0,
    )


def golden(kind):
    """Configuration, state dict under the release's names, inputs and all that came out."""
    data = np.load(GOLDEN / f"unet_{kind}.npz")
    config = config_of(json.loads(str(data["config"])), kind)
    prefix = unet_names.NETWORK if kind == "ldm" else ""
    state = {prefix + name.removeprefix("state_dict/"): data[name] for name in data if name.startswith("state_dict/")}
    labels = data["input/2"]
    if kind == "ldm":  # the context is the row of a table of classes
        state[unet_names.CLASSES], labels = labels[:, 0], np.arange(len(labels))
    inputs = data["input/0"].transpose(0, 2, 3, 1), data["input/1"].astype(np.float32), labels.astype(np.int32)
    return config, state, inputs, data


def as_params(tree, like):
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): None
        for path, _ in jax.tree_util.tree_flatten_with_path(like)[0]
    }
    leaves = []
    for path in paths:
        value = tree
        for part in path.split("/"):
            value = value[part]
        leaves.append(jnp.asarray(value))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    ("kind", "compute"), [("adm", Compute(attention="heads_first")), ("ldm", Compute(remat="dots"))], ids=["adm", "ldm"]
)
def test_outputs_and_gradients_are_the_originals(kind, compute):
    config, state, (x, t, y), data = golden(kind)
    graph, like = nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0), compute=compute)))
    params = as_params(unet_names.to_ours(state, config), like)
    cotangent = data["cotangent"].transpose(0, 2, 3, 1)

    @jax.jit
    def both(params, x):
        out, back = jax.vjp(lambda params, x: nnx.merge(graph, params)(x, jnp.asarray(t), jnp.asarray(y)), params, x)
        return out, back(cotangent)

    out, (gradients, grad_x) = both(params, x)
    assert relative(out.transpose(0, 3, 1, 2), data["out"]) < 1e-5
    assert relative(grad_x.transpose(0, 3, 1, 2), data["grad_x"]) < 1e-5
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]
    }
    tree = {}
    for path, leaf in flat.items():
        place = tree
        *above, last = path.split("/")
        for part in above:
            place = place.setdefault(part, {})
        place[last] = leaf
    named = unet_names.to_official(tree, config)
    prefix = unet_names.NETWORK if kind == "ldm" else ""
    checked = [name for name in data if name.startswith("grad/")]
    assert len(checked) == 7
    for name in checked:
        assert relative(named[prefix + name.removeprefix("grad/")], data[name]) < 1e-5, name
