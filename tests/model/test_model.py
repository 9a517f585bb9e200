"""The whole model: the reference implementation's outputs and gradients, its start, token order, and the scan over blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layers import assert_close, call, numbers, randomised

from dit.design.config import BLOCKS, ModelConfig
from dit.diffusion.process import guided
from dit.model.compute import Compute
from dit.model.layers import position_embedding
from dit.model.transformer import DiT, patchify, unpatchify
from dit.weights import official

CONFIG = ModelConfig("adaln_zero", 2, depth=3, hidden_size=24, num_heads=2, input_size=8, in_channels=3, num_classes=10)


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def arguments(config=CONFIG):
    x = numbers(3, config.input_size, config.input_size, config.in_channels)
    return x, np.float32([0, 250, 999]), np.int32([1, 9, 10])


@functools.cache
def a_model(block, unroll=1, **changes):
    """A model with random parameters, the same for every `unroll`."""
    return randomised(
        lambda: DiT(
            dataclasses.replace(CONFIG, block=block, **changes), rngs=nnx.Rngs(0), compute=Compute(unroll=unroll)
        )
    )


@functools.cache
def first_parameters():
    """An adaLN-Zero model with its own initial values."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: DiT(CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(DiT(CONFIG, rngs=nnx.Rngs(0))))())


@pytest.fixture(params=["model_patch2", "model_patch4"])
def reference(request, golden):
    """The reference's arrays, its configuration as ours, and our model with its weights: `apply(params, x, t, y)` and params."""
    arrays = golden(request.param)
    config = ModelConfig(
        "adaln_zero", **{k.removeprefix("config/"): v.item() for k, v in arrays.items() if "config/" in k}
    )
    graph, params = nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    weights = {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}
    nnx.replace_by_pure_dict(params, jax.tree.map(jnp.asarray, official.to_ours(weights, config)))
    return arrays, config, jax.jit(lambda params, *inputs: nnx.merge(graph, params)(*inputs)), params


def test_outputs_and_all_gradients_are_the_references(reference):
    arrays, config, apply, params = reference
    x, t, y = nhwc(arrays["x"]), jnp.asarray(arrays["t"], jnp.float32), jnp.asarray(arrays["y"], jnp.int32)

    def objective(params, x):
        out = apply(params, x, t, y)
        return jnp.sum(out * nhwc(arrays["cotangent"])), out

    (by_params, by_x), out = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(params, x)
    assert_close(out, nhwc(arrays["out"]))
    assert_close(by_x, nhwc(arrays["grad_x"]))
    found = official.to_official(nnx.to_pure_dict(by_params), config)
    expected = {name.removeprefix("grad/"): array for name, array in arrays.items() if name.startswith("grad/")}
    assert len(expected) >= 6
    for name, array in expected.items():
        assert_close(found[name], array)


def test_guided_outputs_are_the_references(reference):
    arrays, config, apply, params = reference
    x, t, y = nhwc(arrays["cfg/x"]), jnp.asarray(arrays["cfg/t"]), jnp.asarray(arrays["cfg/y"], jnp.int32)
    half = len(x) // 2
    for scale in (1.5, 4.0):
        denoise = guided(functools.partial(apply, params), scale, config.num_classes, cfg_channels=3)
        assert_close(denoise(x[:half], t[:half], y[:half]), nhwc(arrays[f"cfg/{scale}"])[:half])


def test_output_of_adaln_zero_is_exactly_zero_at_first():
    out = call(first_parameters(), *arguments())
    assert out.shape == (3, 8, 8, 6)
    assert not np.any(out)


def test_patch_weights_start_xavier_over_flattened_patches():
    layer, limit = first_parameters().patch_embedding, (6 / (2 * 2 * 3 + 24)) ** 0.5
    assert layer.kernel.shape == (12, 24)
    assert 0.95 * limit < np.abs(layer.kernel[...]).max() <= limit
    assert not np.any(layer.bias[...])


def test_blocks_start_from_different_weights():
    kernel = first_parameters().blocks.attention.qkv.kernel[...]
    assert kernel.shape == (3, 24, 72)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1 and np.abs(kernel[1] - kernel[2]).max() > 0.1


def test_patches_are_row_major_with_channels_last():
    x = numbers(2, 6, 6, 3)
    expected = [
        [x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() for i in range(3) for j in range(3)] for b in range(2)
    ]
    np.testing.assert_array_equal(patchify(jnp.asarray(x), 2), expected)


@pytest.mark.parametrize("patch_size", [1, 2, 3, 6])
def test_unpatchify_undoes_patchify(patch_size):
    x = jnp.asarray(numbers(2, 6, 6, 3))
    np.testing.assert_array_equal(unpatchify(patchify(x, patch_size), patch_size), x)


def affine(layer, x):
    return np.asarray(x) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


@pytest.mark.parametrize("block", BLOCKS)
def test_scan_equals_blocks_run_one_by_one(block):
    model, (x, t, y) = a_model(block), arguments()
    tokens = affine(model.patch_embedding, patchify(jnp.asarray(x), 2)) + position_embedding(24, 4)
    time, label = call(model.timestep_embedding, t), call(model.label_embedding, y)
    condition = time + label if block.startswith("adaln") else np.stack([time, label], axis=1)
    if block == "in_context":
        tokens = np.concatenate([tokens, condition], axis=1)
    graph, stacked = nnx.split(model.blocks)
    for i in range(3):
        tokens = call(nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked)), tokens, condition)
    decoded = call(model.final_layer, tokens[:, :16], condition)
    assert_close(call(model, x, t, y), unpatchify(jnp.asarray(decoded), 2), tolerance=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_unrolling_does_not_change_the_output(block):
    assert_close(call(a_model(block, unroll=3), *arguments()), call(a_model(block), *arguments()), tolerance=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_time_label_and_image_all_count_and_images_do_not_mix(block):
    x, t, y = arguments()
    first = np.array([True, False, False])
    out = call(a_model(block), x, t, y)
    for changed in (
        (x + first[:, None, None, None].astype(np.float32), t, y),
        (x, np.where(first, np.float32(500), t), y),
        (x, t, np.where(first, np.int32(2), y)),
    ):
        change = np.abs(call(a_model(block), *changed) - out).max(axis=(1, 2, 3))
        assert change[0] > 1e-3
        assert not np.any(change[1:])


def test_without_learned_variance_the_output_has_the_inputs_channels():
    assert call(a_model("adaln_zero", learn_sigma=False), *arguments()).shape == (3, 8, 8, 3)
