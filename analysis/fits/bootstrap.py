"""Wild cluster bootstrap: residuals of a whole cell change sign together, and the law is fitted again.

The clusters are cells (block, size, patch, image size): the points of one training curve, and the seeds of one cell, share what the
law misses there, so they are not independent (Cameron, Gelbach & Miller 2008). Few cells need care, or intervals come out too narrow:
residuals are inflated for the parameters fitted, each replicate by its own draw as in Student's t; and no cell varies less than the
cells do on average, nor less than seed noise (a law that passes through a point has not thereby removed the noise there).
"""

from __future__ import annotations

import numpy as np

from analysis.fits.refine import Problem, minimise


def degrees_of_freedom(clusters: int, parameters: int) -> int:
    """Clusters less parameters, at least 1."""
    return max(clusters - parameters, 1)


def inflation(clusters: int, parameters: int) -> float:
    """Factor on residuals for the degrees of freedom that fitting used up, counted in clusters."""
    return float(np.sqrt(clusters / degrees_of_freedom(clusters, parameters)))


def perturbations(
    residual: np.ndarray,
    clusters: np.ndarray,
    cells: np.ndarray,
    runs: np.ndarray,
    parameters: int,
    noise_sd: float,
    replicates: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random residuals (replicates, n) like the fit's own (n,): a cluster changes sign together, and no cell varies too little.

    `clusters`, `cells`, `runs` (n,) number them; a cluster holds one cell or several (of different blocks), a cell holds runs.
    """
    count = int(clusters.max()) + 1
    freedom = degrees_of_freedom(count, parameters)
    student = freedom / rng.chisquare(freedom, size=(replicates, 1))
    factor = student * inflation(count, parameters) ** 2
    signs = rng.choice([-1.0, 1.0], size=(replicates, count))
    mean = np.bincount(cells, residual) / np.bincount(cells)
    seeds = np.array([len(np.unique(runs[cells == one])) for one in range(len(mean))])
    wanted = np.maximum(factor * np.mean(mean**2), noise_sd**2 / seeds)
    missing = np.sqrt(np.maximum(wanted - factor * mean**2, 0.0))
    own = np.sqrt(factor) * signs[:, clusters] * residual
    return own + (missing * rng.standard_normal((replicates, len(mean))))[:, cells]


def resample(
    problem: Problem,
    theta: np.ndarray,
    moved: np.ndarray,
) -> np.ndarray:
    """Parameters (p,) fitted again to fitted log scores plus `moved` (replicates, n) -> (replicates that converged, p)."""
    fitted = problem.form.log_score(theta[None], problem.u, problem.group)[0]
    weights = np.ones(moved.shape[1])
    found, _, converged = minimise(problem, np.repeat(theta[None], len(moved), axis=0), fitted + moved, weights)
    return found[converged]
