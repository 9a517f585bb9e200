"""Noise levels: the paths from image to noise, and the discrete process of the paper (NumPy only, float64).

A level says x = alpha · image + sigma · noise. Every path runs from the image to the noise: timesteps 0 ... 999 of the discrete process,
t from 0 to 1 of a flow (SiT's paper; its code runs the other way), σ upwards of EDM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dit.design.checks import require_number, require_positive
from dit.errors import UserError


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process: `timesteps` steps of a linear schedule (ADM's, as the paper uses it)."""

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        require_positive(self, "timesteps")
        require_number(self, "beta_start", low=0, high=1, ends="()")
        require_number(self, "beta_end", low=self.beta_start, high=1, ends="[)")


@dataclass(frozen=True)
class Schedule:
    """A discrete forward process: float64 arrays over its (kept) steps.

    `timesteps` are the original indices that the model is shown; the rest follow Ho et al., eqs. 4-7. The clipped posterior
    log-variance replaces its first entry, log 0, by the second.
    """

    timesteps: np.ndarray
    betas: np.ndarray

    @property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1.0 - self.betas)

    @property
    def alphas_cumprod_prev(self) -> np.ndarray:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @property
    def posterior_variance(self) -> np.ndarray:
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        variance = self.posterior_variance
        return np.log(np.append(variance[1], variance[1:])) if len(variance) > 1 else np.log(self.betas)

    @property
    def posterior_mean_coef1(self) -> np.ndarray:
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @property
    def posterior_mean_coef2(self) -> np.ndarray:
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)


def linear_schedule(config: DiffusionConfig) -> Schedule:
    """All steps of the linear schedule."""
    betas = np.linspace(config.beta_start, config.beta_end, config.timesteps, dtype=np.float64)
    return Schedule(np.arange(config.timesteps), betas)


def even_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps spread evenly from first to last, the fractional stride accumulated and rounded half to even.

    Raises:
        UserError: if there are more steps than timesteps.
    """
    _require_steps(timesteps, steps)
    stride = (timesteps - 1) / (steps - 1) if steps > 1 else 1.0
    position, kept = 0.0, []
    for _ in range(steps):
        kept.append(round(position))
        position += stride
    return kept


def strided_timesteps(timesteps: int, steps: int) -> list[int]:
    """Every so many timesteps from the first on: the whole stride that gives exactly `steps`.

    Raises:
        UserError: if there are more steps than timesteps, or no whole stride fits.
    """
    _require_steps(timesteps, steps)
    for stride in range(1, timesteps + 1):
        if len(range(0, timesteps, stride)) == steps:
            return list(range(0, timesteps, stride))
    raise UserError(
        f"no whole stride visits exactly {steps} of {timesteps} timesteps: choose a divisor such as 50, or ddpm"
    )


def _require_steps(timesteps: int, steps: int) -> None:
    if not 1 <= steps <= timesteps:
        raise UserError(f"sampling_steps {steps} is outside 1 ... {timesteps}, the steps of the trained process")


def respace(schedule: Schedule, kept: list[int]) -> Schedule:
    """The process that visits only `kept` steps, with the same cumulative noise at each."""
    alphas_cumprod = schedule.alphas_cumprod[kept]
    previous = np.append(1.0, alphas_cumprod[:-1])
    return Schedule(schedule.timesteps[kept], 1.0 - alphas_cumprod / previous)


class Level(NamedTuple):
    """Where on a path: x = alpha · image + sigma · noise, with both coefficients' derivatives by the path's own `time`.

    `guided`: whether guidance acts here.
    """

    time: Any
    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any
    guided: Any = True


Path = Callable[..., Level]
"""`(time, xp) -> Level`, computed with NumPy or with JAX's."""


def linear(t: Any, xp: Any = np) -> Level:
    """x = (1 - t) · image + t · noise (rectified flow; SiT's "Linear")."""
    one = xp.ones_like(t)
    return Level(t, 1 - t, t, -one, one)


def gvp(t: Any, xp: Any = np) -> Level:
    """x = cos(πt/2) · image + sin(πt/2) · noise (SiT's generalised variance-preserving path)."""
    half = np.pi / 2
    cos, sin = xp.cos(half * t), xp.sin(half * t)
    return Level(t, cos, sin, -half * sin, half * cos)


def vp(t: Any, xp: Any = np, beta_min: float = 0.1, beta_max: float = 20.0) -> Level:
    """The variance-preserving SDE with β rising from 0.1 to 20 (Song et al. 2021, eq. 33): alpha² = exp(-∫β), sigma² = 1 - alpha²."""
    log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
    slope = -0.5 * t * (beta_max - beta_min) - 0.5 * beta_min
    alpha, sigma = xp.exp(log_alpha), xp.sqrt(-xp.expm1(2 * log_alpha))
    return Level(t, alpha, sigma, alpha * slope, -(alpha**2) * slope / sigma)


def exploding(sigma: Any, xp: Any = np) -> Level:
    """x = image + σ · noise, with σ for the time (Karras et al. 2022)."""
    one = xp.ones_like(sigma)
    return Level(sigma, one, sigma, 0 * one, one)


FLOWS: dict[str, Path] = {"linear": linear, "gvp": gvp, "vp": vp}


def flow_ends(path: str, predict: str) -> tuple[float, float]:
    """The least and largest t that is trained on and sampled from, kept off an end where a coefficient is infinite (as in SiT)."""
    if path == "vp":
        return 1e-5, 1.0
    return (0.0, 1.0) if predict == "velocity" else (1e-3, 1 - 1e-3)


def discrete_points(schedule: Schedule) -> Level:
    """The image itself, then the levels of a discrete process in order: (N + 1,). Derivatives by the timestep are not defined."""
    acp = np.append(1.0, schedule.alphas_cumprod)
    none = np.full(len(acp), np.nan)
    return Level(np.append(-1, schedule.timesteps).astype(np.float64), np.sqrt(acp), np.sqrt(1 - acp), none, none)
