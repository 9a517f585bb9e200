"""Layers against loops and NumPy: embeddings, attention, MLP, normalisation, and their initial values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit.model import layers

D, HEADS = 64, 4


def rngs():
    return nnx.Rngs(0)


def assert_xavier(layer, limit):
    """Uniform within ±limit: the largest of thousands is just below it, the spread is limit/√3; no bias."""
    kernel = np.asarray(layer.kernel[...])
    assert 0.99 * limit < np.abs(kernel).max() <= limit * 1.000001
    assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    assert not np.any(layer.bias[...])


def test_weights_start_xavier_uniform_with_the_fused_qkv_as_one_matrix():
    attention, mlp = layers.Attention(D, HEADS, rngs()), layers.Mlp(D, 4 * D, rngs())
    assert_xavier(attention.qkv, math.sqrt(6 / (4 * D)))
    assert_xavier(attention.proj, math.sqrt(6 / (2 * D)))
    assert_xavier(mlp.fc1, math.sqrt(6 / (5 * D)))
    assert_xavier(mlp.fc2, math.sqrt(6 / (5 * D)))
    cross = layers.CrossAttention(D, HEADS, rngs())
    for layer in (cross.q, cross.k, cross.v, cross.proj):
        assert_xavier(layer, math.sqrt(6 / (2 * D)))


def test_embeddings_start_normal_with_deviation_one_fiftieth():
    time, label = layers.TimestepEmbedding(D, rngs()), layers.LabelEmbedding(300, 0.1, D, rngs())
    for table in (time.fc1.kernel, time.fc2.kernel, label.table.embedding):
        values = np.asarray(table[...])
        assert values.std() == pytest.approx(0.02, rel=0.04)
        assert np.abs(values).max() > 0.055  # a normal's tail: neither uniform nor truncated at two deviations
    assert not np.any(time.fc1.bias[...]) and not np.any(time.fc2.bias[...])


@pytest.mark.parametrize(("dropout", "rows"), [(0.1, 11), (0.0, 10)])
def test_a_null_label_exists_only_with_label_dropout(dropout, rows):
    embedding = layers.LabelEmbedding(10, dropout, 8, rngs())
    table = np.asarray(embedding.table.embedding[...])
    assert table.shape == (rows, 8)
    np.testing.assert_array_equal(embedding(jnp.arange(rows)), table)


def test_timestep_features_are_cosines_then_sines_of_the_raw_timestep():
    steps = [0, 1, 17, 500, 999]
    angles = [[t * 10000 ** (-i / 128) for i in range(128)] for t in steps]
    expected = [[*map(math.cos, row), *map(math.sin, row)] for row in angles]
    features = layers.timestep_features(jnp.asarray(steps, jnp.float32))
    assert features.shape == (5, 256)
    np.testing.assert_allclose(features, expected, atol=1e-4)  # float32 angles up to 999
    np.testing.assert_array_equal(features[0], [1.0] * 128 + [0.0] * 128)


@pytest.mark.parametrize(("width", "grid"), [(24, 4), (72, 5)])
def test_position_embedding_is_column_first(width, grid):
    quarter, expected = width // 4, []
    for row in range(grid):
        for column in range(grid):
            token = []
            for position in (column, row):
                angles = [position / 10000 ** (i / quarter) for i in range(quarter)]
                token += [*map(math.sin, angles), *map(math.cos, angles)]
            expected.append(token)
    table = layers.position_embedding(width, grid)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, np.asarray(expected, np.float64).astype(np.float32))


def randomised(make, seed=0):
    """What `make` makes, with every parameter drawn from N(0, 0.3²), biases and scales too."""
    graph, state = nnx.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(seed)
    drawn = [np.float32(0.3) * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, map(jnp.asarray, drawn)))


def call(module, *arguments):
    """The module's result as NumPy, compiled once for modules of one kind."""
    return np.asarray(_compiled(*nnx.split(module), *arguments))


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graph, state, *arguments):
    return nnx.merge(graph, state)(*arguments)


def assert_close(found, expected, tolerance=1e-5):
    """Within `tolerance` of the largest value."""
    assert np.abs(found - np.asarray(expected)).max() < tolerance * np.abs(expected).max()


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def affine(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def attend(q, k, v, heads):
    """Softmax attention of one image's (T, D) queries, head after head, query after query, in float64."""
    out, width = np.zeros_like(q), q.shape[1] // heads
    for part in (slice(h * width, (h + 1) * width) for h in range(heads)):
        for i, query in enumerate(q[:, part]):
            scores = np.array([query @ key for key in k[:, part]]) / math.sqrt(width)
            weights = np.exp(scores) / np.exp(scores).sum()
            out[i, part] = weights @ v[:, part]
    return out


def test_self_attention_is_softmax_attention_per_head():
    attention, x = randomised(lambda: layers.Attention(16, HEADS, rngs())), numbers(2, 5, 16)
    for image, result in zip(x, call(attention, x)):
        q, k, v = np.split(affine(attention.qkv, image), 3, axis=-1)
        assert_close(result, affine(attention.proj, attend(q, k, v, HEADS)))


def test_cross_attention_reads_keys_and_values_from_the_memory():
    attention = randomised(lambda: layers.CrossAttention(16, HEADS, rngs()))
    x, memory = numbers(2, 5, 16), numbers(2, 2, 16, seed=2)
    for image, tokens, result in zip(x, memory, call(attention, x, memory)):
        q, k, v = affine(attention.q, image), affine(attention.k, tokens), affine(attention.v, tokens)
        assert_close(result, affine(attention.proj, attend(q, k, v, HEADS)))


def test_mlp_is_gelu_in_its_tanh_form():
    mlp, x = randomised(lambda: layers.Mlp(8, 20, rngs())), numbers(2, 3, 8)
    hidden = affine(mlp.fc1, x)
    tanh_gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    assert_close(call(mlp, x), affine(mlp.fc2, tanh_gelu))


@pytest.mark.parametrize("affine_norm", [False, True])
def test_layer_norm_has_eps_one_millionth(affine_norm):
    norm, x = layers.layer_norm(8, rngs(), affine_norm), 1e-3 * numbers(3, 8)  # so small that eps counts
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-6)
    assert_close(call(norm, x), expected)
    assert len(jax.tree.leaves(nnx.state(norm))) == (2 if affine_norm else 0)


def test_layer_norm_keeps_its_precision_far_from_zero():
    x = numbers(4, 64) + 1000
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / x64.std(-1, keepdims=True)
    assert_close(call(layers.layer_norm(64, rngs(), False), x), expected, tolerance=1e-4)


def test_modulation_scales_by_one_plus_scale_per_image():
    x, shift, scale = numbers(2, 3, 4), numbers(2, 4, seed=2), numbers(2, 4, seed=3)
    result = layers.modulate(*map(jnp.asarray, (x, shift, scale)))
    for b in range(2):
        for token in range(3):
            np.testing.assert_allclose(result[b, token], x[b, token] * (1 + scale[b]) + shift[b], rtol=1e-6, atol=1e-6)
