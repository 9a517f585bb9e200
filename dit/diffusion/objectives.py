"""Objectives at work: what a training example is, what its loss is, and what an output says of image and noise.

The functions that the records of `dit.design.objectives` name come first, each with its equation; `level` holds a path's coefficients. Of a
target that is linear, a · image + b · noise, and of x = alpha · image + sigma · noise, two equations in two unknowns, a sampler gets both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dit.design.objectives import ObjectiveConfig
from dit.design.parts import load
from dit.design.samplers import path_of
from dit.design.schedule import DiffusionConfig, Level, flow_ends, linear_schedule
from dit.diffusion.process import Images, Losses, Model, Tables, tables


def one(level: Level, **values: Any) -> Any:
    """1: every level counts alike; the model sees the noised image as it is."""
    return 1.0


def noise(level: Level, x: Any, noise: Any, **values: Any) -> Any:
    """ε (Ho et al. 2020, eq. 14)."""
    return noise


def image(level: Level, x: Any, noise: Any, **values: Any) -> Any:
    """The clean image x."""
    return x


def variance_preserving_velocity(level: Level, x: Any, noise: Any, **values: Any) -> Any:
    """v = alpha · ε - sigma · x (Salimans & Ho 2022)."""
    return level.alpha * noise - level.sigma * x


def flow_target(level: Level, x: Any, noise: Any, predict: str, **values: Any) -> Any:
    """Towards the image, -(alpha' · x + sigma' · ε), which is x - ε on the linear path; or ε; or the score -ε / sigma (Ma et al. 2024)."""
    if predict == "velocity":
        return -(level.d_alpha * x + level.d_sigma * noise)
    return noise if predict == "noise" else -noise / level.sigma


def preconditioned(level: Level, x: Any, noise: Any, sigma_data: float, **values: Any) -> Any:
    """F of D = c_skip · x_σ + c_out · F: (x - c_skip · x_σ) / c_out = (σ · x / σ_d - σ_d · ε) / √(σ² + σ_d²) (Karras et al. 2022, eq. 8).

    With it, the loss 1 / c_out² · |D - x|² is |F - target|², of weight 1.
    """
    return (level.sigma * x / sigma_data - sigma_data * noise) / jnp.sqrt(level.sigma**2 + sigma_data**2)


def _clipped_snr(level: Level, weighting: str, gamma: float) -> tuple[Any, Any]:
    snr = (level.alpha / level.sigma) ** 2
    return snr, jnp.minimum(snr, gamma) if weighting == "min_snr" else None


def noise_weight(level: Level, weighting: str, gamma: float, **values: Any) -> Any:
    """1, or min(SNR, γ) / SNR (Hang et al. 2023)."""
    snr, clipped = _clipped_snr(level, weighting, gamma)
    return 1.0 if clipped is None else clipped / snr


def image_weight(level: Level, weighting: str, gamma: float, **values: Any) -> Any:
    """1, or min(SNR, γ) (Hang et al. 2023)."""
    _, clipped = _clipped_snr(level, weighting, gamma)
    return 1.0 if clipped is None else clipped


def v_weight(level: Level, weighting: str, gamma: float, **values: Any) -> Any:
    """1, or min(SNR, γ) / (SNR + 1) (Hang et al. 2023)."""
    snr, clipped = _clipped_snr(level, weighting, gamma)
    return 1.0 if clipped is None else clipped / (snr + 1)


def kl_diffusion(level: Level) -> Any:
    """w_KL = sigma · sigma' - sigma² · alpha' / alpha, half the squared diffusion of the path's own SDE (SiT, Sec. 2.4)."""
    return level.sigma * level.d_sigma - level.sigma**2 * level.d_alpha / level.alpha


def flow_weight(level: Level, predict: str, weighting: str, **values: Any) -> Any:
    """1, (w_KL / sigma)² ("velocity") or w_KL / sigma² ("likelihood") of the noise's squared error; of the score's, sigma² times that."""
    weight: Any = 1.0
    if weighting == "velocity":
        weight = (kl_diffusion(level) / level.sigma) ** 2
    elif weighting == "likelihood":
        weight = kl_diffusion(level) / level.sigma**2
    return weight * level.sigma**2 if predict == "score" else weight


def uniform(key: Key[Array, ""], **values: Any) -> Float[Array, ""]:
    """t uniform in [0, 1)."""
    return jax.random.uniform(key)


def flow_times(
    key: Key[Array, ""],
    path: str,
    predict: str,
    times: str,
    time_mean: float,
    time_sd: float,
    shift: float,
    **values: Any,
) -> Float[Array, ""]:
    """t uniform, or of a normal logit (Esser et al. 2024, eq. 19); then shifted to st / (1 + (s - 1)t) (eq. 23), and kept off open ends."""
    t = uniform(key) if times == "uniform" else jax.nn.sigmoid(time_mean + time_sd * jax.random.normal(key))
    low, high = flow_ends(path, predict)
    return low + (high - low) * (shift * t / (1 + (shift - 1) * t))


def log_normal(key: Key[Array, ""], time_mean: float, time_sd: float, **values: Any) -> Float[Array, ""]:
    """σ with ln σ normal (Karras et al. 2022, Table 1)."""
    return jnp.exp(time_mean + time_sd * jax.random.normal(key))


def timestep(level: Level, **values: Any) -> Any:
    """The timestep, 0 ... 999."""
    return level.time


def time_from_noise(level: Level, **values: Any) -> Any:
    """1 - t, unscaled: 0 at the noise and 1 at the image, as SiT's code shows it."""
    return 1 - level.time


def quarter_log_sigma(level: Level, **values: Any) -> Any:
    """c_noise = ln σ / 4 (Karras et al. 2022, Table 1)."""
    return jnp.log(level.time) / 4


def unit_variance(level: Level, sigma_data: float, **values: Any) -> Any:
    """c_in = 1 / √(σ² + σ_d²) (Karras et al. 2022, Table 1)."""
    return 1 / jnp.sqrt(level.sigma**2 + sigma_data**2)


class Denoised(NamedTuple):
    """What a model says of a noised image: the clean `image`, the `noise`, and `output`, noise first and then any variance channels."""

    image: Images
    noise: Images
    output: Array


class Objective:
    """A run's objective with its functions loaded; `diffusion` is what discrete ones are trained on."""

    def __init__(self, config: ObjectiveConfig, diffusion: DiffusionConfig):
        self.config, self.record, self.values = config, config.record, config.values
        self.is_discrete, self._diffusion = self.record.process == "discrete", diffusion
        names = ("target", "weight", "times", "condition", "scale", "losses")
        self._call: dict[str, Callable[..., Any]] = {name: load(getattr(self.record, name)) for name in names}

    def table(self) -> Tables:
        """Coefficients of the discrete process, for `level` and `losses`."""
        return tables(linear_schedule(self._diffusion))

    def draw_time(self, key: Key[Array, ""]) -> Array:
        """The time of one training example: a timestep, t or σ."""
        if self.is_discrete:
            return jax.random.randint(key, (), 0, self._diffusion.timesteps)
        return self._call["times"](key, **self.values)

    def level(self, table: Tables, times: Array) -> Level:
        """The levels of `times` (B,), with leaves (B, 1, 1, 1)."""
        if not self.is_discrete:
            return path_of(self.config)(times[:, None, None, None], jnp)
        columns = (table.timesteps, table.sqrt_alphas_cumprod, table.sqrt_one_minus_alphas_cumprod)
        time, alpha, sigma = (column[times][:, None, None, None] for column in columns)
        return Level(time, alpha, sigma, jnp.nan * alpha, jnp.nan * alpha)

    def losses(
        self, model: Model, table: Tables, x_start: Images, y: Int[Array, " B"], times: Array, noise: Images
    ) -> Losses:
        """Per-image losses: the weighted mean squared error of the target, with the plain one as `mse`; or the record's own."""
        if self.record.losses is not None:
            return self._call["losses"](model, table, x_start, y, times, noise)
        level = self.level(table, times)
        x = level.alpha * x_start + level.sigma * noise
        target = self._call["target"](level, x_start, noise, **self.values)
        output = self.raw(model, x, y, level)[..., : x.shape[-1]]
        mse = jnp.mean((target - output) ** 2, axis=(1, 2, 3))
        loss = jnp.ravel(self._call["weight"](level, **self.values)) * mse
        return Losses(loss, mse, jnp.zeros_like(mse))

    def raw(self, model: Model, x: Images, y: Int[Array, " B"], level: Level) -> Array:
        """The model's output for images at `level`, shown as the objective shows them."""
        time = jnp.broadcast_to(jnp.ravel(self._call["condition"](level, **self.values)), y.shape)
        scale = self._call["scale"](level, **self.values)
        return model(x if isinstance(scale, float) and scale == 1 else scale * x, time, y)

    def read(self, output: Array, x: Images, level: Level) -> Denoised:
        """Image and noise that an output implies."""
        channels, target = x.shape[-1], self._call["target"]
        first = output[..., :channels]
        a, b = target(level, 1.0, 0.0, **self.values), target(level, 0.0, 1.0, **self.values)
        determinant = b * level.alpha - a * level.sigma
        found = (b * x - level.sigma * first) / determinant, (level.alpha * first - a * x) / determinant
        return Denoised(*found, output if target is noise else found[1])
