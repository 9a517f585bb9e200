"""The four blocks and two decoders: what they start as, and how the condition enters."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from test_layers import assert_close, assert_xavier, call, numbers, randomised

from dit.design.config import BLOCKS, ModelConfig
from dit.model.blocks import make_block, make_final_layer

D, TOKENS = 32, 6


def config(block):
    return ModelConfig(block, patch_size=2, depth=1, hidden_size=D, num_heads=4, input_size=8, in_channels=4)


@functools.cache
def fresh(make, block):
    """A block or decoder at its initial values."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(config(block), nnx.Rngs(0))))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(make(config(block), nnx.Rngs(0))))())


@functools.cache
def drawn(make, block):
    """A block or decoder whose parameters are all random."""
    return randomised(lambda: make(config(block), nnx.Rngs(0)))


def inputs(block, seed=1):
    """Tokens and the condition that a block of this kind takes."""
    shape = (2, D) if block.startswith("adaln") else (2, 2, D)
    return numbers(2, TOKENS, D, seed=seed), numbers(*shape, seed=seed + 1)


def test_adaln_zero_is_exactly_the_identity_at_first():
    x, condition = inputs("adaln_zero")
    np.testing.assert_array_equal(call(fresh(make_block, "adaln_zero"), x, condition), x)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block != "adaln_zero"])
def test_no_other_block_starts_as_the_identity(block):
    x, condition = inputs(block)
    assert np.all(np.abs(call(fresh(make_block, block), x, condition) - x).max(axis=2) > 0.01)


def test_adaln_modulation_is_xavier_and_adaln_zeros_is_zero():
    assert_xavier(fresh(make_block, "adaln").modulation, (6 / (5 * D)) ** 0.5)
    zero = fresh(make_block, "adaln_zero").modulation
    assert zero.kernel.shape == (D, 6 * D)
    assert not np.any(zero.kernel[...]) and not np.any(zero.bias[...])


@pytest.mark.parametrize("block", BLOCKS)
def test_decoders_start_at_zero(block):
    decoder, (x, condition) = fresh(make_final_layer, block), inputs(block)
    assert not np.any(call(decoder, x, condition))
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
    regressed = silu(condition) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    return np.split(regressed[:, None, :], pieces, axis=-1)


def test_adaln_zero_takes_shift_scale_gate_for_attention_then_for_the_mlp():
    block, (x, condition) = drawn(make_block, "adaln_zero"), inputs("adaln_zero")
    shift1, scale1, gate1, shift2, scale2, gate2 = regress(block.modulation, condition, 6)
    middle = x + gate1 * call(block.attention, norm(x) * (1 + scale1) + shift1)
    expected = middle + gate2 * call(block.mlp, norm(middle) * (1 + scale2) + shift2)
    assert_close(call(block, x, condition), expected)


def test_adaln_takes_shift_and_scale_twice_and_has_plain_residuals():
    block, (x, condition) = drawn(make_block, "adaln"), inputs("adaln")
    shift1, scale1, shift2, scale2 = regress(block.modulation, condition, 4)
    middle = x + call(block.attention, norm(x) * (1 + scale1) + shift1)
    assert_close(call(block, x, condition), middle + call(block.mlp, norm(middle) * (1 + scale2) + shift2))


def scaled(layer, x):
    """A LayerNorm with scale and shift."""
    return norm(x) * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def test_cross_attention_comes_between_self_attention_and_mlp_each_behind_its_norm():
    block, (x, memory) = drawn(make_block, "cross_attention"), inputs("cross_attention")
    x1 = x + call(block.attention, scaled(block.norm1, x))
    x2 = x1 + call(block.cross_attention, scaled(block.norm_cross, x1), memory)
    assert_close(call(block, x, memory), x2 + call(block.mlp, scaled(block.norm2, x2)))


def test_in_context_is_a_plain_vit_block():
    block, (x, condition) = drawn(make_block, "in_context"), inputs("in_context")
    middle = x + call(block.attention, scaled(block.norm1, x))
    assert_close(call(block, x, condition), middle + call(block.mlp, scaled(block.norm2, middle)))


@pytest.mark.parametrize("block", ["adaln_zero", "adaln", "cross_attention"])
def test_the_condition_of_an_image_moves_that_image_alone(block):
    module, (x, condition) = drawn(make_block, block), inputs(block)
    moved = np.concatenate([condition[:1] + 1, condition[1:]])
    change = np.abs(call(module, x, moved) - call(module, x, condition)).max(axis=(1, 2))
    assert change[0] > 1e-3
    assert change[1] == 0


def with_token_moved(memory, token):
    moved = memory.copy()
    moved[:, token, ::2] += 1  # not the same in every channel: a LayerNorm would take that out
    return moved


def test_both_memory_tokens_count_and_their_order_does_not():
    block, (x, memory) = drawn(make_block, "cross_attention"), inputs("cross_attention")
    out = call(block, x, memory)
    for token in (0, 1):
        assert np.abs(call(block, x, with_token_moved(memory, token)) - out).max() > 1e-3
    assert_close(call(block, x, memory[:, ::-1]), out)


def test_both_in_context_tokens_count_and_their_order_does_not():
    block, (x, condition) = drawn(make_block, "in_context"), inputs("in_context")

    def run(tokens):
        return call(block, np.concatenate([x, tokens], axis=1), tokens)[:, :TOKENS]

    out = run(condition)
    for token in (0, 1):
        assert np.abs(run(with_token_moved(condition, token)) - out).max() > 1e-3
    assert_close(run(condition[:, ::-1]), out)


def decode(linear, x):
    return x @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])


def test_decoders_normalise_then_decode():
    x, condition = inputs("adaln")
    adaptive = drawn(make_final_layer, "adaln")
    shift, scale = regress(adaptive.modulation, condition, 2)
    assert_close(call(adaptive, x, condition), decode(adaptive.linear, norm(x) * (1 + scale) + shift))
    x, condition = inputs("in_context")
    plain = drawn(make_final_layer, "in_context")
    assert_close(call(plain, x, condition), decode(plain.linear, scaled(plain.norm, x)))
