"""Gaussian diffusion with learned-range variance (Ho et al. 2020; Nichol & Dhariwal 2021), as the paper trains and samples it.

Plain functions over a callable `model(x, t, y) -> (B, I, I, 2C)` that predicts the noise (first C channels) and the variance's
interpolation weight (last C). Schedules (`dit.design.schedule`) are float64; what enters the computation is float32. Images are NHWC.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dit.design.schedule import Schedule

Images = Float[Array, "B I I C"]
Output = Float[Array, "B I I O"]
Steps = Int[Array, " B"]
Model = Callable[[Array, Array, Array], Array]


class Tables(NamedTuple):
    """A schedule's float32 coefficients on the device, padded with zeros to a common length."""

    timesteps: Float[Array, " N"]
    sqrt_alphas_cumprod: Float[Array, " N"]
    sqrt_one_minus_alphas_cumprod: Float[Array, " N"]
    sqrt_recip_alphas_cumprod: Float[Array, " N"]
    sqrt_recipm1_alphas_cumprod: Float[Array, " N"]
    posterior_mean_coef1: Float[Array, " N"]
    posterior_mean_coef2: Float[Array, " N"]
    log_betas: Float[Array, " N"]
    posterior_log_variance_clipped: Float[Array, " N"]
    alphas_cumprod: Float[Array, " N"]
    alphas_cumprod_prev: Float[Array, " N"]


def tables(schedule: Schedule, length: int | None = None) -> Tables:
    """Coefficients of `schedule`; padding to `length` lets schedules of different lengths share one compiled sampler."""
    acp = schedule.alphas_cumprod
    columns = {
        "timesteps": schedule.timesteps,
        "sqrt_alphas_cumprod": np.sqrt(acp),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - acp),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / acp),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / acp - 1.0),
        "posterior_mean_coef1": schedule.posterior_mean_coef1,
        "posterior_mean_coef2": schedule.posterior_mean_coef2,
        "log_betas": np.log(schedule.betas),
        "posterior_log_variance_clipped": schedule.posterior_log_variance_clipped,
        "alphas_cumprod": acp,
        "alphas_cumprod_prev": schedule.alphas_cumprod_prev,
    }
    padding = (0, max(0, (length or 0) - len(acp)))
    return Tables(**{name: jnp.asarray(np.pad(column, padding), jnp.float32) for name, column in columns.items()})


def _at(column: Float[Array, " N"], steps: Steps) -> Float[Array, "B 1 1 1"]:
    return column[steps][:, None, None, None]


def q_sample(table: Tables, x_start: Images, steps: Steps, noise: Images) -> Images:
    """Noise `x_start` to each image's step (Ho et al., eq. 4)."""
    return _at(table.sqrt_alphas_cumprod, steps) * x_start + _at(table.sqrt_one_minus_alphas_cumprod, steps) * noise


class Prediction(NamedTuple):
    """What the model says of the previous step: mean and log-variance, and the clean image it implies (unclipped)."""

    mean: Images
    log_variance: Images
    pred_xstart: Images


def p_mean_variance(table: Tables, output: Output, x: Images, steps: Steps) -> Prediction:
    """Read a model output as p(x_{t-1} | x_t), the variance interpolated in log space (Nichol & Dhariwal, eq. 15).

    An output without variance channels takes the upper end of the range, beta_t.
    """
    channels = x.shape[-1]
    noise, weight = output[..., :channels], output[..., channels:]
    upper = _at(table.log_betas, steps)
    lower = _at(table.posterior_log_variance_clipped, steps)
    if weight.shape[-1]:
        fraction = (weight + 1) / 2
        log_variance = fraction * upper + (1 - fraction) * lower
    else:
        log_variance = jnp.broadcast_to(upper, x.shape)
    pred_xstart = (
        _at(table.sqrt_recip_alphas_cumprod, steps) * x - _at(table.sqrt_recipm1_alphas_cumprod, steps) * noise
    )
    return Prediction(posterior_mean(table, pred_xstart, x, steps), log_variance, pred_xstart)


def posterior_mean(table: Tables, x_start: Images, x: Images, steps: Steps) -> Images:
    """Mean of q(x_{t-1} | x_t, x_0) (Ho et al., eq. 7)."""
    return _at(table.posterior_mean_coef1, steps) * x_start + _at(table.posterior_mean_coef2, steps) * x


class Losses(NamedTuple):
    """Per-image losses (B,): `mse` of the noise, `vb` in bits per dimension, and their sum."""

    loss: Float[Array, " B"]
    mse: Float[Array, " B"]
    vb: Float[Array, " B"]


def training_losses(
    model: Model, table: Tables, x_start: Images, y: Int[Array, " B"], steps: Steps, noise: Images
) -> Losses:
    """L_simple + L_vlb (Nichol & Dhariwal, eq. 16, with weight 1 on L_vlb in bits); the mean is stopped in L_vlb."""
    x = q_sample(table, x_start, steps, noise)
    output = model(x, table.timesteps[steps], y)
    channels = x.shape[-1]
    mse = jnp.mean((noise - output[..., :channels]) ** 2, axis=(1, 2, 3))
    if output.shape[-1] == channels:
        return Losses(mse, mse, jnp.zeros_like(mse))
    frozen = jnp.concatenate([jax.lax.stop_gradient(output[..., :channels]), output[..., channels:]], axis=-1)
    vb = variational_bound(table, frozen, x_start, x, steps)
    return Losses(mse + vb, mse, vb)


def variational_bound(table: Tables, output: Output, x_start: Images, x: Images, steps: Steps) -> Float[Array, " B"]:
    """One term of the bound in bits per dimension: a KL, and at the first step the discretised likelihood of `x_start`."""
    predicted = p_mean_variance(table, output, x, steps)
    true_mean = posterior_mean(table, x_start, x, steps)
    true_log_variance = _at(table.posterior_log_variance_clipped, steps)
    kl = _gaussian_kl(true_mean, true_log_variance, predicted.mean, predicted.log_variance)
    nll = -_discretized_log_likelihood(x_start, predicted.mean, 0.5 * predicted.log_variance)
    kl, nll = jnp.mean(kl, axis=(1, 2, 3)), jnp.mean(nll, axis=(1, 2, 3))
    return jnp.where(steps == 0, nll, kl) / math.log(2.0)


def _gaussian_kl(mean1: Images, log_variance1: Float[Array, "B 1 1 1"], mean2: Images, log_variance2: Images) -> Images:
    difference = (mean1 - mean2) ** 2 * jnp.exp(-log_variance2)
    return 0.5 * (-1.0 + log_variance2 - log_variance1 + jnp.exp(log_variance1 - log_variance2) + difference)


def _discretized_log_likelihood(x: Images, mean: Images, log_scale: Images) -> Images:
    """Log-probability of the bin of width 2/255 around `x`, open beyond ±0.999 (Ho et al., eq. 13; tanh approximation)."""

    def cdf(z: Images) -> Images:
        return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    def log(probability: Images) -> Images:
        return jnp.log(jnp.maximum(probability, 1e-12))

    centred, inverse_scale = x - mean, jnp.exp(-log_scale)
    upper, lower = cdf(inverse_scale * (centred + 1 / 255)), cdf(inverse_scale * (centred - 1 / 255))
    return jnp.where(x < -0.999, log(upper), jnp.where(x > 0.999, log(1.0 - lower), log(upper - lower)))


def ddpm_step(table: Tables, output: Output, x: Images, steps: Steps, noise: Images) -> Images:
    """One ancestral step; no noise is added at the last one."""
    predicted = p_mean_variance(table, output, x, steps)
    keep = (steps != 0)[:, None, None, None]
    return predicted.mean + jnp.where(keep, jnp.exp(0.5 * predicted.log_variance) * noise, 0.0)


def ddim_step(table: Tables, output: Output, x: Images, steps: Steps, noise: Images, eta: float = 0.0) -> Images:
    """One DDIM step (Song et al. 2021, eq. 12); `eta` 0 is deterministic, 1 has the ancestral variance."""
    pred_xstart = p_mean_variance(table, output, x, steps).pred_xstart
    scaled = _at(table.sqrt_recip_alphas_cumprod, steps) * x - pred_xstart
    epsilon = scaled / _at(table.sqrt_recipm1_alphas_cumprod, steps)
    acp, previous = _at(table.alphas_cumprod, steps), _at(table.alphas_cumprod_prev, steps)
    sigma = eta * jnp.sqrt((1 - previous) / (1 - acp)) * jnp.sqrt(1 - acp / previous)
    mean = pred_xstart * jnp.sqrt(previous) + jnp.sqrt(1 - previous - sigma**2) * epsilon
    return mean + jnp.where((steps != 0)[:, None, None, None], sigma * noise, 0.0)


def guided(model: Model, cfg_scale: float, null_label: int, cfg_channels: int | None = 3) -> Model:
    """Classifier-free guidance (Ho & Salimans 2021), conditional and null halves in one batch.

    Args:
        cfg_scale: 1 is no guidance; eps = eps_null + cfg_scale · (eps_cond - eps_null).
        null_label: index of the null label, `num_classes`.
        cfg_channels: how many noise channels are guided, at most as many as the input has; `None` is all. The released code
            guides 3 of the 4 latent channels. Other channels, the variance's included, stay the conditional ones.
    """

    def denoise(x: Images, t: Float[Array, " B"], y: Int[Array, " B"]) -> Output:
        labels = jnp.concatenate([y, jnp.full_like(y, null_label)])
        output = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), labels)
        cond, null = jnp.split(output, 2)
        n = min(x.shape[-1], cfg_channels or x.shape[-1])
        eps = null[..., :n] + cfg_scale * (cond[..., :n] - null[..., :n])
        return jnp.concatenate([eps, cond[..., n:]], axis=-1)

    return denoise


def away_from(strong: Model, weak: Model, cfg_scale: float, cfg_channels: int | None = 3) -> Model:
    """Autoguidance (Karras et al. 2024): weak + cfg_scale · (strong - weak) in the channels that `guided` moves, both with the label."""

    def denoise(x: Images, t: Float[Array, " B"], y: Int[Array, " B"]) -> Output:
        own, other = strong(x, t, y), weak(x, t, y)
        n = min(x.shape[-1], cfg_channels or x.shape[-1])
        return jnp.concatenate([other[..., :n] + cfg_scale * (own[..., :n] - other[..., :n]), own[..., n:]], axis=-1)

    return denoise
