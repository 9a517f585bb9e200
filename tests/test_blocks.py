"""The four blocks and two decoders: what they start as, and how the condition enters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layers import assert_xavier, numbers, randomised

from dit.blocks import make_block, make_final_layer
from dit.config import BLOCKS, ModelConfig

D, TOKENS = 32, 6


def config(block):
    return ModelConfig(block, patch_size=2, depth=1, hidden_size=D, num_heads=4, input_size=8, in_channels=4)


def a_block(block):
    return make_block(config(block), nnx.Rngs(0))


def a_decoder(block):
    return make_final_layer(config(block), nnx.Rngs(0))


def inputs(block, seed=1):
    """Tokens and the condition that a block of this kind takes."""
    shape = (2, D) if block.startswith("adaln") else (2, 2, D)
    return jnp.asarray(numbers(2, TOKENS, D, seed=seed)), jnp.asarray(numbers(*shape, seed=seed + 1))


def test_adaln_zero_is_exactly_the_identity_at_first():
    x, condition = inputs("adaln_zero")
    np.testing.assert_array_equal(a_block("adaln_zero")(x, condition), x)


@pytest.mark.parametrize("block", set(BLOCKS) - {"adaln_zero"})
def test_no_other_block_starts_as_the_identity(block):
    x, condition = inputs(block)
    assert np.abs(a_block(block)(x, condition) - x).min(axis=(0, 2)).max() > 0


def test_adaln_modulation_is_xavier_and_adaln_zeros_is_zero():
    assert_xavier(a_block("adaln").modulation, (6 / (5 * D)) ** 0.5)
    zero = a_block("adaln_zero").modulation
    assert zero.kernel.shape == (D, 6 * D)
    assert not np.any(zero.kernel[...]) and not np.any(zero.bias[...])


@pytest.mark.parametrize("block", BLOCKS)
def test_decoders_start_at_zero(block):
    decoder, (x, condition) = a_decoder(block), inputs(block)
    assert not np.any(decoder(x, condition))
    assert not np.any(decoder.linear.kernel[...]) and not np.any(decoder.linear.bias[...])
    assert hasattr(decoder, "modulation") == block.startswith("adaln")
    if block == "adaln":
        assert_xavier(decoder.modulation, (6 / (3 * D)) ** 0.5)
    if block == "adaln_zero":
        assert not np.any(decoder.modulation.kernel[...])


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def regress(layer, condition, pieces):
    """Chunks of SiLU-then-linear of the condition, each (B, 1, D)."""
    regressed = silu(np.asarray(condition)) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    return np.split(regressed[:, None, :], pieces, axis=-1)


def close(result, expected):
    np.testing.assert_allclose(result, np.asarray(expected), rtol=1e-4, atol=1e-4)


def test_adaln_zero_takes_shift_scale_gate_for_attention_then_for_the_mlp():
    block, (x, condition) = randomised(a_block("adaln_zero")), inputs("adaln_zero")
    shift1, scale1, gate1, shift2, scale2, gate2 = regress(block.modulation, condition, 6)
    middle = x + gate1 * block.attention(jnp.asarray(norm(np.asarray(x)) * (1 + scale1) + shift1))
    expected = middle + gate2 * block.mlp(jnp.asarray(norm(np.asarray(middle)) * (1 + scale2) + shift2))
    close(block(x, condition), expected)


def test_adaln_takes_shift_and_scale_twice_and_has_plain_residuals():
    block, (x, condition) = randomised(a_block("adaln")), inputs("adaln")
    shift1, scale1, shift2, scale2 = regress(block.modulation, condition, 4)
    middle = x + block.attention(jnp.asarray(norm(np.asarray(x)) * (1 + scale1) + shift1))
    close(block(x, condition), middle + block.mlp(jnp.asarray(norm(np.asarray(middle)) * (1 + scale2) + shift2)))


def scaled(layer, x):
    """A LayerNorm with scale and shift."""
    return jnp.asarray(norm(np.asarray(x)) * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...]))


def test_cross_attention_comes_between_self_attention_and_mlp_each_behind_its_norm():
    block, (x, memory) = randomised(a_block("cross_attention")), inputs("cross_attention")
    x1 = x + block.attention(scaled(block.norm1, x))
    x2 = x1 + block.cross_attention(scaled(block.norm_cross, x1), memory)
    close(block(x, memory), x2 + block.mlp(scaled(block.norm2, x2)))


def test_in_context_is_a_plain_vit_block():
    block, (x, condition) = randomised(a_block("in_context")), inputs("in_context")
    middle = x + block.attention(scaled(block.norm1, x))
    close(block(x, condition), middle + block.mlp(scaled(block.norm2, middle)))


@pytest.mark.parametrize("block", ["adaln_zero", "adaln", "cross_attention"])
def test_the_condition_of_an_image_moves_that_image_alone(block):
    module, (x, condition) = randomised(a_block(block)), inputs(block)
    change = np.abs(module(x, condition.at[0].add(1.0)) - module(x, condition)).max(axis=(1, 2))
    assert change[0] > 1e-3
    assert change[1] == 0


def test_both_memory_tokens_count_and_their_order_does_not():
    block, (x, memory) = randomised(a_block("cross_attention")), inputs("cross_attention")
    for token in (0, 1):
        assert np.abs(block(x, memory.at[:, token].add(1.0)) - block(x, memory)).max() > 1e-3
    close(block(x, memory[:, ::-1]), block(x, memory))


def test_order_of_in_context_tokens_does_not_matter_and_their_values_do():
    block, (x, condition) = randomised(a_block("in_context")), inputs("in_context")

    def run(tokens):
        return block(jnp.concatenate([x, tokens], axis=1), tokens)[:, :TOKENS]

    close(run(condition[:, ::-1]), run(condition))
    assert np.abs(run(condition.at[:, 1].add(1.0)) - run(condition)).max() > 1e-3


def test_decoders_normalise_then_decode():
    x, condition = inputs("adaln")
    adaptive = randomised(a_decoder("adaln"))
    shift, scale = regress(adaptive.modulation, condition, 2)
    kernel, bias = (np.asarray(part[...]) for part in (adaptive.linear.kernel, adaptive.linear.bias))
    close(adaptive(x, condition), (norm(np.asarray(x)) * (1 + scale) + shift) @ kernel + bias)
    x, condition = inputs("in_context")
    plain = randomised(a_decoder("in_context"))
    kernel, bias = (np.asarray(part[...]) for part in (plain.linear.kernel, plain.linear.bias))
    close(plain(x, condition), scaled(plain.norm, x) @ kernel + bias)
    assert jax.tree.leaves(nnx.state(plain.norm))
