"""Wild cluster bootstrap: residuals of a whole cell change sign together, and the law is fitted again.

The clusters are cells (block, size, patch, image size): the points of one training curve, and the seeds of one cell, share what the
law misses there, so they are not independent (Cameron, Gelbach & Miller 2008). Few cells need care, or intervals come out too narrow:
residuals are inflated for the parameters fitted, each replicate by its own draw as in Student's t; and no cell varies less than the
cells do on average, nor less than seed noise (a law that passes through a point has not thereby removed the noise there).
"""

from __future__ import annotations

import numpy as np

from analysis.fits.refine import RESAMPLE_TOLERANCE, Problem, minimise


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
    """Random residuals (replicates, n) like the fit's own (n,): a cluster changes sign together, and none varies too little.

    `clusters`, `cells`, `runs` (n,) number them; a cluster holds one cell or several (of different blocks), a cell holds runs. What is
    missing to the average scatter is added to a cluster as a whole for its mean, and to its cells apart for their differences.
    """
    count = int(clusters.max()) + 1
    freedom = degrees_of_freedom(count, parameters)
    factor = inflation(count, parameters) ** 2 * freedom / rng.chisquare(freedom, size=(replicates, 1))
    signs = rng.choice([-1.0, 1.0], size=(replicates, count))
    cell_mean = np.bincount(cells, residual) / np.bincount(cells)
    cluster_of = np.zeros(len(cell_mean), dtype=int)
    cluster_of[cells] = clusters
    members = np.bincount(cluster_of)
    mean = np.bincount(cluster_of, cell_mean) / members
    apart = (cell_mean - mean[cluster_of]) * np.sqrt(members / np.maximum(members - 1, 1))[cluster_of]
    seeds = np.array([len(np.unique(runs[cells == one])) for one in range(len(cell_mean))])
    shared = factor * np.mean(mean**2)
    alone = np.where(members == 1, np.maximum(shared, factor * mean**2), 0.0)[:, cluster_of]
    wanted = np.maximum(factor * np.mean(apart**2), noise_sd**2 / seeds - alone)
    to_clusters = np.sqrt(np.maximum(shared - factor * mean**2, 0.0)) * rng.standard_normal((replicates, count))
    to_cells = np.sqrt(np.maximum(wanted - factor * apart**2, 0.0)) * rng.standard_normal((replicates, len(apart)))
    return np.sqrt(factor) * signs[:, clusters] * residual + to_clusters[:, clusters] + to_cells[:, cells]


def resample(
    problem: Problem,
    theta: np.ndarray,
    moved: np.ndarray,
) -> np.ndarray:
    """Parameters (p,) fitted again to fitted log scores plus `moved` (replicates, n) -> (replicates that converged, p)."""
    fitted = problem.form.log_score(theta[None], problem.u, problem.group)[0]
    weights = np.ones(moved.shape[1])
    start = np.repeat(theta[None], len(moved), axis=0)
    found, _, converged = minimise(problem, start, fitted + moved, weights, RESAMPLE_TOLERANCE)
    return found[converged]
