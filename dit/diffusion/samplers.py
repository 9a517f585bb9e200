"""Steps of the samplers, and the one loop that all of them run in.

A step goes from point `index + 1` of a grid to point `index`; the last one is 0. `denoise(x, level)` says image and noise at a level. All
noise of an image comes from its own key. The steps are named by the records of `dit.design.samplers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dit.design.samplers import Plan
from dit.design.schedule import Level
from dit.diffusion.objectives import Denoised, kl_diffusion
from dit.diffusion.process import Images, Tables, ddim_step, ddpm_step, tables

Denoise = Callable[[Images, Level], Denoised]
Result = tuple[Images, Images]
Index = Int[Array, ""]


class Grid(NamedTuple):
    """A plan on the device, float32, padded so that several numbers of steps share one compiled loop.

    Attributes:
        points: (N + 1,) where steps start and end; calls: (N, calls) the levels of a step's model calls.
        num_steps: how many of the steps are real.
        table: coefficients of the discrete process, for its own samplers; None for the others.
    """

    points: Level
    calls: Level
    num_steps: Int[Array, ""]
    table: Tables | None

    def point(self, index: Index) -> Level:
        """The level at a point."""
        return Level(*(column[index] for column in self.points[:5]))

    def call(self, index: Index, number: int = 0) -> Level:
        """The level of a model call of a step."""
        return Level(*(column[index, number] for column in self.calls))


def grid(plan: Plan, length: int) -> Grid:
    """A plan's arrays, padded with zeros to `length` steps at least."""
    steps = len(plan.calls.time)
    missing = max(0, length - steps)

    def column(values: Any, kind: Any = np.float32) -> Any:
        values = np.asarray(values, kind)
        return jnp.asarray(np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)))

    points = Level(*(column(part) for part in plan.points[:5]))
    calls = Level(*(column(part) for part in plan.calls[:5]), guided=column(plan.calls.guided, bool))
    table = None if plan.schedule is None else tables(plan.schedule, length=length)
    return Grid(points, calls, jnp.asarray(steps, jnp.int32), table)


def ancestral(denoise: Denoise, grid: Grid, index: Index, x: Images, memory: Images, noise: Images) -> Result:
    """Ho et al. 2020, Algorithm 2, with the learned variance where there is one."""
    steps = jnp.full((len(x),), index)
    assert grid.table is not None
    return ddpm_step(grid.table, denoise(x, grid.call(index)).output, x, steps, noise), memory


def ddim(denoise: Denoise, grid: Grid, index: Index, x: Images, memory: Images, noise: Images) -> Result:
    """Song et al. 2021, eq. 12, without noise."""
    steps = jnp.full((len(x),), index)
    assert grid.table is not None
    return ddim_step(grid.table, denoise(x, grid.call(index)).output, x, steps, noise), memory


def velocity(found: Denoised, level: Level) -> Images:
    """dx / dtime of the probability flow: alpha' · image + sigma' · noise."""
    return level.d_alpha * found.image + level.d_sigma * found.noise


def euler(
    denoise: Denoise, grid: Grid, index: Index, x: Images, memory: Images, noise: Images, **options: Any
) -> Result:
    """x + h · dx/dt, h < 0: first order."""
    start = grid.call(index)
    return x + (grid.points.time[index] - start.time) * velocity(denoise(x, start), start), memory


def heun(
    denoise: Denoise, grid: Grid, index: Index, x: Images, memory: Images, noise: Images, **options: Any
) -> Result:
    """x + h/2 · (dx/dt here + dx/dt at Euler's end): second order; Euler where the second call is left out."""
    start, end = grid.call(index), grid.call(index, 1)
    h = grid.points.time[index] - start.time
    slope = velocity(denoise(x, start), start)
    guess = x + h * slope

    def corrected(guess: Images) -> Images:
        return x + h * 0.5 * (slope + velocity(denoise(guess, end), end))

    return jax.lax.cond(jnp.isfinite(end.time), corrected, lambda guess: guess, guess), memory


def churned_heun(
    denoise: Denoise,
    grid: Grid,
    index: Index,
    x: Images,
    memory: Images,
    noise: Images,
    churn_noise: float = 1.0,
    **options: Any,
) -> Result:
    """Karras et al. 2022, Algorithm 2: noise is added up to σ̂, then a step of Heun's from there."""
    added = grid.call(index).sigma ** 2 - grid.points.sigma[index + 1] ** 2
    x = x + jnp.sqrt(jnp.maximum(added, 0)) * churn_noise * noise
    return heun(denoise, grid, index, x, memory, noise, **options)


def euler_maruyama(
    denoise: Denoise,
    grid: Grid,
    index: Index,
    x: Images,
    memory: Images,
    noise: Images,
    diffusion: str = "sigma",
    last_step: str = "mean",
    **options: Any,
) -> Result:
    """The reverse SDE, x - h(v - w · score) + √(2wh) · noise, with w = sigma, w_KL or t; then one last step (SiT, Sec. 2.4 and its code).

    The last step has no noise: "mean" keeps the drift of the SDE, "euler" takes the flow's, "tweedie" ends at the image predicted.
    """
    start = grid.call(index)
    h = start.time - grid.points.time[index]
    found = denoise(x, start)
    w = {"sigma": start.sigma, "kl": kl_diffusion(start), "linear": start.time}[diffusion]
    flow = x - h * velocity(found, start)
    mean = flow - h * w * found.noise / start.sigma
    noisy = mean + jnp.sqrt(2 * w * h) * noise
    last = {"mean": mean, "euler": flow, "tweedie": found.image, "none": noisy}[last_step]
    return jnp.where(index == 0, last, noisy), memory


def dpmpp_2m(
    denoise: Denoise, grid: Grid, index: Index, x: Images, memory: Images, noise: Images, **options: Any
) -> Result:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) in λ = ln(alpha / sigma): first order at both ends, second between."""
    before, start, end = grid.point(index + 2), grid.point(index + 1), grid.point(index)
    log_snr_before, log_snr, log_snr_end = (jnp.log(p.alpha / p.sigma) for p in (before, start, end))
    h = log_snr_end - log_snr
    image = denoise(x, grid.call(index)).image
    extrapolated = image + h / (2 * (log_snr - log_snr_before)) * (image - memory)
    first_order = (index == grid.num_steps - 1) | (index == 0)
    used = jnp.where(first_order, image, extrapolated)
    return end.sigma / start.sigma * x - end.alpha * jnp.expm1(-h) * used, image


def integrate(
    step: Callable[..., Result], denoise: Denoise, grid: Grid, x: Images, noise: Callable[[Index], Images]
) -> Images:
    """From the noised images `x` at the last point to the images, with `noise(index)` for each step."""

    def body(i: Int[Array, ""], state: Result) -> Result:
        index = grid.num_steps - 1 - i
        return step(denoise, grid, index, *state, noise(index))

    return jax.lax.fori_loop(jnp.zeros_like(grid.num_steps), grid.num_steps, body, (x, jnp.zeros_like(x)))[0]


def sample(
    step: Callable[..., Result],
    denoise: Denoise,
    grid: Grid,
    keys: Key[Array, " B"],
    shape: tuple[int, int, int],
) -> Float[Array, "B I I C"]:
    """Draw one image per key, in one loop whose length is a run-time value: several numbers of steps share one compilation.

    Args:
        keys: one random key per image; all of its noise comes from its key, so an image does not depend on its batch.
        shape: (height, width, channels) of an image.
    """

    def noise(index: Int[Array, ""]) -> Images:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)

    # The initial noise has an index of its own, so that every respacing of one key starts from the same noise.
    start = noise(jnp.asarray(np.iinfo(np.int32).max, jnp.int32))
    if grid.table is None:
        start = grid.points.sigma[grid.num_steps] * start
    return integrate(step, denoise, grid, start, noise)
