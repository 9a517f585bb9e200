"""Huber loss on log scores, minimised for many starts or bootstrap replicates at once.

Sum over points of w rho(r), rho(r) = r^2 / 2 up to delta and delta (|r| - delta / 2) beyond (a sum, never a mean: a tolerance on a
mean stops early, Besiroglu et al. arXiv:2404.10102). Each iteration takes the best of several damped steps with analytic
derivatives, from the reweighted one (global) to Newton's (fast near the end), projected on the bounds; delta shrinks to its value
in stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

DELTA = 1e-3
TOLERANCE = 1e-9
RESAMPLE_TOLERANCE = 1e-5
"""Relative tolerance of a bootstrap replicate or a left-out fit: far below its own spread."""
ITERATIONS = 120
_MIXTURES = (1.0, 0.1, 0.01, 1e-5)  # how much curvature points beyond delta lend a step: 1 is reweighting, 0 Newton's


class Model(Protocol):
    """What can be fitted: log scores with derivatives, and bounds, as `laws.Form` has them."""

    def log_score(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """Log scores (b, n)."""
        ...

    def jacobian(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """Their derivatives (b, n, p)."""
        ...

    def bounds(self, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (p,)."""
        ...


@dataclass(frozen=True)
class Problem:
    """What is minimised. `relative`: residuals are L / y - 1 instead of log L - log y. `delta` inf is least squares."""

    form: Model
    u: np.ndarray
    group: np.ndarray | None = None
    delta: float = DELTA
    relative: bool = False
    groups: int = 1

    def residuals(self, theta: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Residuals (b, n) for targets (b, n) of log scores."""
        residual = self.form.log_score(theta, self.u, self.group) - target
        return np.expm1(np.minimum(residual, 50.0)) if self.relative else residual

    def derivatives(self, theta: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Their derivatives (b, n, p)."""
        jacobian = self.form.jacobian(theta, self.u, self.group)
        return (residual + 1)[..., None] * jacobian if self.relative else jacobian

    def loss(self, theta: np.ndarray, target: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
        """Loss of each row of theta."""
        size = np.abs(self.residuals(theta, target))
        inside = np.minimum(size, delta)
        return (weights * inside * (size - 0.5 * inside)).sum(-1)


def minimise(
    problem: Problem, theta: np.ndarray, target: np.ndarray, weights: np.ndarray, tolerance: float = TOLERANCE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimise from each start: theta (b, p), target and weights (b, n) or (n,) -> theta, loss (b,), converged (b,)."""
    shape = (len(theta), len(problem.u))
    target, weights = np.broadcast_to(target, shape), np.broadcast_to(weights, shape)
    stages = [max(delta, problem.delta) for delta in (1e-1, 1e-2)] if np.isfinite(problem.delta) else []
    for delta in stages:
        theta, _, _ = _descend(problem, theta, target, weights, delta, iterations=20, tolerance=1e-4)
    return _descend(problem, theta, target, weights, problem.delta, ITERATIONS, tolerance)


def _descend(
    problem: Problem,
    theta: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    delta: float,
    iterations: int,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lower, upper = problem.form.bounds(problem.groups)
    theta = np.clip(theta, lower, upper)
    loss = problem.loss(theta, target, weights, delta)
    damping = np.full(len(theta), 1e-3)
    going = np.ones(len(theta), dtype=bool)
    for _ in range(iterations):
        at = np.flatnonzero(going)
        if not at.size:
            break
        here, y, w = theta[at], target[at], weights[at]
        best, least = here, np.full(len(at), np.inf)
        for step in _steps(problem, here, y, w, delta, damping[at], lower, upper):
            there = np.clip(here + step, lower, upper)
            value = problem.loss(there, y, w, delta)
            better = value < least
            best, least = np.where(better[:, None], there, best), np.where(better, value, least)
        accepted = least < loss[at]
        moved = np.abs(best - here) / (np.abs(here) + 1e-3)
        gain = loss[at] - least
        small = accepted & ((moved.max(-1) < tolerance) | (gain < tolerance**1.5 * loss[at]))
        theta[at[accepted]], loss[at[accepted]] = best[accepted], least[accepted]
        damping[at] = np.where(accepted, np.maximum(damping[at] * 0.1, 1e-12), damping[at] * 8)
        going[at] = ~(small | (damping[at] > 1e6))
    return theta, loss, ~going


def _steps(
    problem: Problem,
    theta: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    delta: float,
    damping: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> list[np.ndarray]:
    """Steps (b, p) from the reweighted to Newton's, zero in directions that a bound blocks."""
    residual = problem.residuals(theta, target)
    jacobian = problem.derivatives(theta, residual)
    reweighted = weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    gradient = np.einsum("bnp,bn->bp", jacobian, reweighted * residual)
    blocked = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    free = ~blocked
    both = free[:, :, None] & free[:, None, :]
    inside = np.abs(residual) <= delta
    mixtures = _MIXTURES if np.isfinite(delta) else (1.0,)
    curvatures = [np.where(inside, weights, part * reweighted) for part in mixtures]
    transposed = jacobian.transpose(0, 2, 1)
    diagonal, steps = None, []
    for curvature in curvatures:
        hessian = transposed @ (jacobian * curvature[..., None])
        if diagonal is None:
            diagonal = np.einsum("bpp->bp", hessian)
            diagonal = np.maximum(diagonal, 1e-12 * diagonal.max(-1, keepdims=True) + 1e-300)
        scale = np.sqrt(diagonal)
        scaled = np.where(both, hessian / (scale[:, :, None] * scale[:, None, :]), 0.0)
        scaled = scaled + np.eye(theta.shape[1]) * np.where(free, damping[:, None] + 1e-11, 1.0)[:, None, :]
        right = np.where(free, -gradient / scale, 0.0)
        steps.append(np.linalg.solve(scaled, right[..., None])[..., 0] / scale)
    return steps
