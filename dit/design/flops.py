"""Multiply-adds and parameters of a diffusion transformer, in closed form.

Convention: **one multiply-add is one flop**, as in the paper (its first author calls the count "effectively MACs"), for one image
and one forward pass, the VAE excluded. Counted: every matrix product, the attention's two included; the conditioning MLP of a
block once per image. Not counted: softmax, GELU, biases, residuals, table look-ups. `paper` mode adds two operations per token
and channel in each block, the term with which all sixteen published rows agree within 0.01 Gflops. Parameters are the trainable
ones: the frozen position embedding is left out, as in the paper. This file never imports the model: formula and network are two
derivations that the tests hold equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from dit.design.config import Evaluation, ModelConfig, RunConfig
from dit.design.guidance import plan_of

FREQUENCIES = 256  # width of the sinusoidal timestep features
CONDITION_TOKENS = 2  # timestep and label, each a token, in the in-context and cross-attention blocks
BACKWARD_FACTOR = 3  # training costs three forward passes (Sec. 4 of the paper)


@dataclass(frozen=True)
class Count:
    """Multiply-adds per image and trainable parameters of one component."""

    macs: int
    params: int


def components(model: ModelConfig) -> dict[str, Count]:
    """Multiply-adds (one forward pass, one image) and parameters of each component; all blocks together per entry."""
    d, n, t, m = model.hidden_size, model.depth, model.tokens, model.mlp_hidden_size
    patch = model.patch_size**2
    match model.block:
        case "adaln_zero":
            tokens, modulation, cross, adaptive = t, 6, False, True
        case "adaln":
            tokens, modulation, cross, adaptive = t, 4, False, True
        case "cross_attention":
            tokens, modulation, cross, adaptive = t, 0, True, False
        case "in_context":
            tokens, modulation, cross, adaptive = t + CONDITION_TOKENS, 0, False, False
        case _:
            assert_never(model.block)
    rows = model.num_classes + (model.class_dropout_prob > 0)
    parts = {
        "patch_embedding": Count(t * patch * model.in_channels * d, patch * model.in_channels * d + d),
        "timestep_embedding": Count(FREQUENCIES * d + d * d, FREQUENCIES * d + d + d * d + d),
        "label_embedding": Count(0, rows * d),
        "attention_projections": Count(n * 4 * tokens * d * d, n * (4 * d * d + 4 * d)),
        "attention_products": Count(n * 2 * tokens * tokens * d, 0),
        "mlp": Count(n * 2 * tokens * d * m, n * (2 * d * m + m + d)),
    }
    if cross:
        on_tokens = 2 * t * d * d + 2 * t * CONDITION_TOKENS * d
        parts["cross_attention"] = Count(n * (on_tokens + 2 * CONDITION_TOKENS * d * d), n * (4 * d * d + 4 * d))
    if model.qk_norm:
        parts["qk_norms"] = Count(0, n * (2 if cross else 1) * 2 * (d // model.num_heads))
    if modulation:
        parts["modulation"] = Count(n * modulation * d * d, n * modulation * (d * d + d))
    else:
        norms = n * (3 if cross else 2) + 1  # affine LayerNorms: those of the blocks and the final one
        parts["layer_norms"] = Count(0, norms * 2 * d)
    out = patch * model.out_channels
    parts["final_layer"] = Count(
        t * d * out + (2 * d * d if adaptive else 0), d * out + out + (2 * d * d + 2 * d if adaptive else 0)
    )
    return parts


def macs(model: ModelConfig) -> int:
    """Multiply-adds of one forward pass for one image: matrix products only."""
    return sum(part.macs for part in components(model).values())


def params(model: ModelConfig) -> int:
    """Trainable parameters."""
    return sum(part.params for part in components(model).values())


def block_params(model: ModelConfig) -> int:
    """Parameters of the products of one block: all but its norms'."""
    parts = components(model)
    names = ("attention_projections", "mlp", "cross_attention", "modulation")
    return sum(parts[name].params for name in names if name in parts) // model.depth


def gflops(model: ModelConfig, paper: bool = False) -> float:
    """Gflops of one forward pass for one image; one multiply-add is one flop.

    Args:
        paper: add 2·S·d per block (S the tokens in the block), which brings all published rows within 0.01.
    """
    extra = 0
    if paper:
        tokens = model.tokens + (CONDITION_TOKENS if model.block == "in_context" else 0)
        extra = 2 * model.depth * tokens * model.hidden_size
    return (macs(model) + extra) / 1e9


def train_gflops(run: RunConfig, step: int) -> float:
    """Training compute after `step` steps: Gflops · batch · steps · 3 (Sec. 4); one multiply-add is one flop."""
    return gflops(run.model) * run.batch_size * step * BACKWARD_FACTOR


def sampling_gflops(model: ModelConfig, sampling_steps: int, cfg_scale: float = 1.0) -> float:
    """Gflops to sample one image: Gflops · steps, doubled under guidance; one multiply-add is one flop."""
    return gflops(model) * sampling_steps * (2 if cfg_scale != 1.0 else 1)


def model_calls(run: RunConfig, evaluation: Evaluation) -> tuple[int, int]:
    """How often an image's sampler calls the model, and at how many of these calls guidance acts."""
    plan = plan_of(run, evaluation)
    calls = evaluation.sampling_steps if plan is None else plan.nfe
    guided = calls if plan is None else plan.guided_calls
    return calls, guided if evaluation.cfg_scale != 1.0 else 0


def drawing_gflops(run: RunConfig, evaluation: Evaluation) -> float:
    """Gflops to draw one image of an evaluation: each model call, and where guidance acts one more of the model it steers away from."""
    calls, guided = model_calls(run, evaluation)
    weak = evaluation.autoguidance
    other = gflops(run.model) if weak is None else weak.gflops
    return gflops(run.model) * calls + other * guided


def scoring_gflops(run: RunConfig) -> float:
    """Gflops of all samples that a run's evaluations draw; one multiply-add is one flop."""
    return float(sum(e.num_samples * drawing_gflops(run, e) for e in run.evaluations))
