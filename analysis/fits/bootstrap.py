"""Cluster bootstrap: fitted scores and random residuals like the fit's own are fitted again.

The clusters are cells (block, size, patch, image size): the points of one training curve, and the seeds of one cell, share what the
law misses there, so they are not independent (Cameron, Gelbach & Miller 2008). Cells vary as they do on average, by Student's t for the
degrees of freedom that the parameters leave, and no less than seed noise (a law that passes through a point has not thereby removed
the noise there); what a curve does about its cell's mean changes sign as a whole. For least squares of a law that is linear in its
parameters this is Student's interval of ordinary least squares on cell means.
"""

from __future__ import annotations

import numpy as np

from analysis.fits.refine import RESAMPLE_TOLERANCE, Problem, minimise

_WIDER = 1.05  # percentiles of a few hundred replicates, and curved forms, fall a little short


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
    noise_sd: float | np.ndarray,
    replicates: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random residuals (replicates, n) like the fit's own (n,): a cluster changes sign together, and none varies too little.

    `clusters`, `cells`, `runs` (n,) number them; a cluster holds one cell or several (of different blocks), a cell holds runs. `noise_sd`
    is of one run, one for all cells or one for each. Clusters' means, and cells' differences from them, vary as those of the fit do on
    average; what a curve does about its cell's mean changes sign as a whole.
    """
    count = int(clusters.max()) + 1
    freedom = degrees_of_freedom(count, parameters)
    factor = (_WIDER * inflation(count, parameters)) ** 2 * freedom / rng.chisquare(freedom, size=(replicates, 1))
    signs = rng.choice([-1.0, 1.0], size=(replicates, count))
    cell_mean = np.bincount(cells, residual) / np.bincount(cells)
    cluster_of = np.zeros(len(cell_mean), dtype=int)
    cluster_of[cells] = clusters
    members = np.bincount(cluster_of)
    mean = np.bincount(cluster_of, cell_mean) / members
    apart = (cell_mean - mean[cluster_of]) * np.sqrt(members / np.maximum(members - 1, 1))[cluster_of]
    seeds = np.array([len(np.unique(runs[cells == one])) for one in range(len(cell_mean))])
    shared, between = factor * np.mean(mean**2), factor * np.mean(apart**2)
    alone = np.where(members == 1, shared, 0.0)[:, cluster_of]
    least = np.broadcast_to(noise_sd, seeds.shape) ** 2 / seeds - alone
    to_clusters = np.sqrt(shared) * rng.standard_normal((replicates, count))
    to_cells = np.sqrt(np.maximum(between, least)) * rng.standard_normal((replicates, len(apart)))
    within = residual - cell_mean[cells]
    return np.sqrt(factor) * signs[:, clusters] * within + to_clusters[:, clusters] + to_cells[:, cells]


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
