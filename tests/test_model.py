"""The whole model: the reference implementation's outputs and gradients, its start, token order, and the scan over blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layers import assert_xavier, numbers, randomised

from dit import official
from dit.config import BLOCKS, ModelConfig
from dit.diffusion import guided
from dit.layers import position_embedding
from dit.model import DiT, patchify, unpatchify

CONFIG = ModelConfig("adaln_zero", 2, depth=3, hidden_size=24, num_heads=2, input_size=8, in_channels=3, num_classes=10)


def relative_error(found, expected):
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def arguments(config=CONFIG):
    x = jnp.asarray(numbers(3, config.input_size, config.input_size, config.in_channels))
    return x, jnp.asarray([0.0, 250.0, 999.0]), jnp.asarray([1, 9, 10], jnp.int32)


@functools.cache
def a_model(block, unroll=1, random=True, **changes):
    config = ModelConfig(**{**CONFIG.__dict__, "block": block, **changes})
    model = DiT(config, rngs=nnx.Rngs(0), unroll=unroll)
    return randomised(model) if random else model


@pytest.fixture(params=["model_patch2", "model_patch4"])
def reference(request, golden):
    """The reference's arrays, its configuration as ours, and our model with its weights: `apply(params, x, t, y)` and params."""
    arrays = golden(request.param)
    config = ModelConfig("adaln_zero", **{k.removeprefix("config/"): v.item() for k, v in arrays.items() if "config/" in k})
    graph, params = nnx.split(DiT(config, rngs=nnx.Rngs(0)))
    weights = {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}
    nnx.replace_by_pure_dict(params, jax.tree.map(jnp.asarray, official.to_ours(weights, config)))
    return arrays, config, lambda params, *inputs: nnx.merge(graph, params)(*inputs), params


def test_outputs_and_all_gradients_are_the_references(reference):
    arrays, config, apply, params = reference
    x, t, y = nhwc(arrays["x"]), jnp.asarray(arrays["t"], jnp.float32), jnp.asarray(arrays["y"], jnp.int32)

    def objective(params, x):
        out = apply(params, x, t, y)
        return jnp.sum(out * nhwc(arrays["cotangent"])), out

    (by_params, by_x), out = jax.grad(objective, argnums=(0, 1), has_aux=True)(params, x)
    assert relative_error(out, nhwc(arrays["out"])) < 1e-5
    assert relative_error(by_x, nhwc(arrays["grad_x"])) < 1e-5
    expected = official.to_ours({k.removeprefix("grad/"): v for k, v in arrays.items() if k.startswith("grad/")}, config)
    errors = jax.tree.map(relative_error, nnx.to_pure_dict(by_params), expected)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_guided_outputs_are_the_references(reference, scale):
    arrays, config, apply, params = reference
    x, t, y = nhwc(arrays["cfg/x"]), jnp.asarray(arrays["cfg/t"]), jnp.asarray(arrays["cfg/y"], jnp.int32)
    half = len(x) // 2
    denoise = guided(functools.partial(apply, params), scale, config.num_classes, cfg_channels=3)
    expected = nhwc(arrays[f"cfg/{scale}"])[:half]
    assert relative_error(denoise(x[:half], t[:half], y[:half]), expected) < 1e-5


@pytest.mark.parametrize("block", BLOCKS)
def test_output_is_exactly_zero_at_first(block):
    out = a_model(block, random=False)(*arguments())
    assert out.shape == (3, 8, 8, 6)
    assert not np.any(out)


def test_patch_weights_start_xavier_over_flattened_patches():
    model = DiT(ModelConfig("adaln", 4, depth=1, hidden_size=64, num_heads=2, input_size=8), rngs=nnx.Rngs(0))
    assert model.patch_embedding.kernel.shape == (64, 64)
    assert_xavier(model.patch_embedding, (6 / (64 + 64)) ** 0.5)


def test_blocks_start_from_different_weights():
    kernel = a_model("adaln", random=False).blocks.attention.qkv.kernel[...]
    assert kernel.shape == (3, 24, 72)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1 and np.abs(kernel[1] - kernel[2]).max() > 0.1


def test_patches_are_row_major_with_channels_last():
    x = numbers(2, 6, 6, 3)
    expected = [[x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() for i in range(3) for j in range(3)] for b in range(2)]
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
    tokens = affine(model.patch_embedding, patchify(x, 2)) + position_embedding(24, 4)
    time, label = model.timestep_embedding(t), model.label_embedding(y)
    condition = time + label if block.startswith("adaln") else jnp.stack([time, label], axis=1)
    if block == "in_context":
        tokens = np.concatenate([tokens, condition], axis=1)
    graph, stacked = nnx.split(model.blocks)
    tokens = jnp.asarray(tokens)
    for i in range(3):
        tokens = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))(tokens, condition)
    expected = unpatchify(model.final_layer(tokens[:, :16], condition), 2)
    assert relative_error(model(x, t, y), expected) < 1e-5


@pytest.mark.parametrize("block", BLOCKS)
def test_unrolling_does_not_change_the_output(block):
    assert relative_error(a_model(block, unroll=3)(*arguments()), a_model(block)(*arguments())) < 1e-6


@pytest.mark.parametrize("block", BLOCKS)
def test_time_label_and_image_all_count_and_images_do_not_mix(block):
    model, (x, t, y) = a_model(block), arguments()
    out = model(x, t, y)
    for changed in ((x.at[0].add(1.0), t, y), (x, t.at[0].set(500.0), y), (x, t, y.at[0].set(2))):
        change = np.abs(model(*changed) - out).max(axis=(1, 2, 3))
        assert change[0] > 1e-3
        assert not np.any(change[1:] > 1e-4)


def test_without_learned_variance_the_output_has_the_inputs_channels():
    assert a_model("adaln_zero", learn_sigma=False)(*arguments()).shape == (3, 8, 8, 3)
