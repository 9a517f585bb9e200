"""Do gates alone hold their own, with every part of one's own?"""

import jax.numpy as jnp
import numpy as np
import shapes
from flax import nnx

from dit.config import (
    Block,
    Data,
    Evaluation,
    Features,
    Metric,
    Objective,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    Sampler,
    attention_and_mlp,
    model_config,
)
from dit.model.layers import ZEROS, Attention, Mlp, layer_norm, linear, normalize


class Gated(nnx.Module):
    """Gates of both branches are regressed from the condition."""

    def __init__(self, config, rngs, compute):
        d = config.hidden_size
        self.norm1, self.norm2 = layer_norm(d, rngs, affine=False), layer_norm(d, rngs, affine=False)
        self.attention = Attention(d, config.num_heads, rngs, compute, config.qk_norm)
        self.mlp = Mlp(d, config.mlp_hidden_size, rngs, compute)
        self.modulation = linear(d, 2 * d, rngs, ZEROS)

    def __call__(self, x, condition):
        gate1, gate2 = jnp.split(self.modulation(nnx.silu(condition)), 2, axis=-1)
        x = x + gate1[:, None] * self.attention(normalize(self.norm1, x))
        return x + gate2[:, None] * self.mlp(normalize(self.norm2, x))


def halfway(times, options):
    """A call where the step starts and one halfway."""
    return np.stack([times[1:], (times[1:] + times[:-1]) / 2], axis=1)


def midpoint(denoise, grid, index, x, memory, noise, **options):
    """The midpoint rule."""

    def slope(x, level):
        found = denoise(x, level)
        return level.d_alpha * found.image + level.d_sigma * found.noise

    start, middle = grid.call(index), grid.call(index, 1)
    there = x + (middle.time - start.time) * slope(x, start)
    return x + (grid.points.time[index] - start.time) * slope(there, middle), memory


def gap(features, reference):
    """How far the means are apart."""
    return float(np.abs(features.mean(0) - reference.mean(0)).max())


GATED = Block("gated", Gated, attention_and_mlp(modulation=2), condition="sum", final="zero", label="Gates alone")
SPOTS = Data("spots", image_size=shapes.SIDE, channels=3, num_classes=2, load=shapes.spots)
MIDPOINT = Sampler("midpoint", step=midpoint, calls=2, processes=("flow",), visits=halfway)
GAP = Metric("gap", of=gap, label="Gap of means")
TOWARDS = Objective(
    "towards_noise",
    target=lambda level, image, noise: noise - image,
    weight=lambda level: 1 / (1 + level.sigma),
    process="flow",
    condition="dit.diffusion.objectives:time_from_noise",
)
COLOURS = Features("colours", make=shapes.colours, channels=3)
NET = Features("spots_net", channels=3, data="spots", label="spots classifier")


def cell(block, size, patch):
    data = SPOTS.config
    measured = ("sfid", "is", "precision", "recall", "gap")
    scored = {"num_samples": 16, "sampling_steps": 2, "sampler": "midpoint"}
    return RunConfig(
        model_config(block, size, patch, data, ladder="nano", learn_sigma=False),
        data,
        steps=8,
        batch_size=8,
        optim=OptimConfig(learning_rate=1e-2, ema_decay=0.2),
        objective=ObjectiveConfig("towards_noise"),
        evaluations=(
            *(Evaluation(step=step, features="spots_net", metrics=measured, **scored) for step in (4, 8)),
            Evaluation(step=8, features="colours", metrics=("gap",), **scored),
        ),
    )


def runs():
    return [cell(block, size, patch) for block in ("gated", "adaln_zero") for size in "SB" for patch in (4, 2)]
