"""Multiply-adds and parameters of a diffusion transformer, in closed form; a U-Net's are in `dit.design.unet.flops`.

Convention: **one multiply-add is one flop**, as in the paper (its first author calls the count "effectively MACs"), for one image
and one forward pass, the VAE excluded. Counted: every matrix product, the attention's two included; the conditioning MLP of a
block once per image. Not counted: softmax, GELU, biases, residuals, table look-ups. `paper` mode adds two operations per token
and channel in each block, the term with which all sixteen published rows agree within 0.01 Gflops. Parameters are the trainable
ones: the frozen position embedding is left out, as in the paper. This file never imports the model: formula and network are two
derivations that the tests hold equal.
"""

from __future__ import annotations

from dit.design.blocks import Count, block_of
from dit.design.config import Evaluation, Model, ModelConfig, RunConfig
from dit.design.guidance import calls_of
from dit.design.unet import UNetConfig
from dit.design.unet import flops as unet_flops
from dit.errors import UserError

FREQUENCIES = 256  # width of the sinusoidal timestep features
BACKWARD_FACTOR = 3  # training costs three forward passes (Sec. 4 of the paper)


def block_components(model: ModelConfig) -> dict[str, Count]:
    """Multiply-adds for one image and parameters of each component of one block.

    Raises:
        UserError: if the block has no count.
    """
    block = block_of(model)
    if block.count is None:
        raise UserError(
            f"block '{block.name}' has no count: give it one, or plan the study so that the model is traced"
        )
    return block.count(model, block.tokens(model))


def components(model: Model) -> dict[str, Count]:
    """Multiply-adds (one forward pass, one image) and parameters of each component; all blocks together per entry."""
    return unet_flops.components(model) if isinstance(model, UNetConfig) else _components(model)


def _components(model: ModelConfig) -> dict[str, Count]:
    d, t, patch = model.hidden_size, model.tokens, model.patch_size**2
    rows = model.num_classes + (model.class_dropout_prob > 0)
    parts = {
        "patch_embedding": Count(t * patch * model.in_channels * d, patch * model.in_channels * d + d),
        "timestep_embedding": Count(FREQUENCIES * d + d * d, FREQUENCIES * d + d + d * d + d),
        "label_embedding": Count(0, rows * d),
    }
    for name, one in block_components(model).items():
        parts[name] = Count(model.depth * one.macs, model.depth * one.params)
    adaptive, out = block_of(model).final != "plain", patch * model.out_channels
    if not adaptive:
        norms = parts.get("layer_norms", Count(0, 0))
        parts["layer_norms"] = Count(norms.macs, norms.params + 2 * d)
    parts["final_layer"] = Count(
        t * d * out + (2 * d * d if adaptive else 0), d * out + out + (2 * d * d + 2 * d if adaptive else 0)
    )
    return parts


def macs(model: Model) -> int:
    """Multiply-adds of one forward pass for one image: matrix products only."""
    return sum(part.macs for part in components(model).values())


def params(model: Model) -> int:
    """Trainable parameters."""
    return sum(part.params for part in components(model).values())


def block_params(model: Model) -> int:
    """Parameters of the products of one block: all but its norms'. Of a U-Net, those of its largest res block."""
    if isinstance(model, UNetConfig):
        return 27 * model.channels[-1] ** 2
    return sum(part.params for name, part in block_components(model).items() if "norm" not in name)


def gflops(model: Model, paper: bool = False) -> float:
    """Gflops of one forward pass for one image; one multiply-add is one flop.

    Args:
        paper: add 2·S·d per block (S the tokens in the block), which brings all published rows within 0.01; for a U-Net one operation
            for each element that enters a normalisation (rule H1), which gives all eleven figures of Table 6.
    """
    extra = 0
    if paper and isinstance(model, UNetConfig):
        extra = unet_flops.normalised(model)
    elif paper and isinstance(model, ModelConfig):
        extra = 2 * model.depth * block_of(model).tokens(model) * model.hidden_size
    return (macs(model) + extra) / 1e9


def train_gflops(run: RunConfig, step: int) -> float:
    """Training compute after `step` steps: Gflops · batch · steps · 3 (Sec. 4); one multiply-add is one flop."""
    return gflops(run.model) * run.batch_size * step * BACKWARD_FACTOR


def sampling_gflops(model: Model, sampling_steps: int, cfg_scale: float = 1.0) -> float:
    """Gflops to sample one image: Gflops · steps, doubled under guidance; one multiply-add is one flop."""
    return gflops(model) * sampling_steps * (2 if cfg_scale != 1.0 else 1)


def model_calls(run: RunConfig, evaluation: Evaluation) -> tuple[int, int]:
    """How often an image's sampler calls the model, and at how many of these calls guidance acts."""
    calls, guided = calls_of(run, evaluation)
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
