"""The best size and the best amount of data for a budget, from L = E + A N^-a + B D^-b with C = k N D.

N* = G (C / k)^(b / (a + b)), D* = (C / k)^(a / (a + b)) / G, G = (a A / (b B))^(1 / (a + b)) (Hoffmann et al. arXiv:2203.15556, Eq. 4).
Intervals are of all parameters together: each replicate of the law gives its own optimum. k is the geometric mean of C / (N D) over
the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits.fit import LawFit, NotIdentified
from analysis.fits.record import Interval, Parameter, Record, interval

_BUDGETS = 5
_EVEN = 0.05  # spread of log C / (N D) up to which one k serves


@dataclass(frozen=True)
class OptimumAt(Record):
    """The best N and D for one training compute; `score` is the law's there."""

    train_gflops: float
    params: float
    params_interval: Interval | None
    images_seen: float
    images_interval: Interval | None
    score: float


@dataclass(frozen=True)
class Optimum(Record):
    """N* ~ C^`params_exponent`, D* ~ C^`images_exponent`, and both at budgets over the data's range of C = `per_pair` N D."""

    form: str
    block: str
    per_pair: float
    params_exponent: Parameter
    images_exponent: Parameter
    budgets: tuple[OptimumAt, ...]


def optimum(law: LawFit) -> Optimum:
    """The optimum of a law in N and D.

    Raises:
        NotIdentified: if the law is not of both, one of their terms is not there, or C / (N D) varies over the data (patch sizes).
    """
    form, data = law.estimate.form, law.estimate.data
    if not (form.additive and {"params", "images_seen"} <= set(form.variables)):
        raise NotIdentified(f"an optimum of N and D needs a law with a term in each, {form.name} has not")
    ratio = np.log(data.column("train_gflops") / (data.column("params") * data.column("images_seen")))
    if ratio.std() > _EVEN:
        raise NotIdentified(
            f"C / (N D) varies by {np.exp(np.ptp(ratio)):.3g} times over the data: keep one patch size, "
            'as in --where "patch_size == 2"'
        )
    k = float(np.exp(ratio.mean()))
    budgets = np.geomspace(data.column("train_gflops").min(), data.column("train_gflops").max(), _BUDGETS)
    first, terms = int(form.irreducible), len(form.variables)
    at = [form.variables.index(name) for name in ("params", "images_seen")]

    def solved(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exponent of N* (b,), log N* and log D* (b, budgets)."""
        natural = form.natural(theta, law.estimate.centers, law.estimate.scale)
        (big_a, big_b), (a, b) = (natural[:, [first + shift + one for one in at]].T for shift in (0, terms))
        log_g = np.log(a * big_a / (b * big_b)) / (a + b)
        log_pairs = np.log(budgets / k)
        share = b / (a + b)
        log_n = log_g[:, None] + share[:, None] * log_pairs
        return share, log_n, log_pairs - log_n

    point = law.estimate.theta[None]
    places = [first + shift + one for shift in (0, terms) for one in at]
    if (point[:, places] <= 0).any():
        raise NotIdentified("a term of N or D is at its bound 0: one of them does not matter to these scores")
    replicates = law.estimate.replicates
    replicates = replicates[(replicates[:, places] > 0).all(1)]
    share, log_n, log_d = solved(point)
    shares, all_n, all_d = solved(replicates if len(replicates) else point)

    def exponent(value: float, values: np.ndarray, name: str) -> Parameter:
        return Parameter("exponent", value, interval(values), None, f"{name} ~ C^exponent")

    columns = {name: np.full(_BUDGETS, np.exp(np.log(data.column(name)).mean())) for name in form.variables}
    columns |= {"params": np.exp(log_n[0]), "images_seen": np.exp(log_d[0])}
    scores = np.exp(law.estimate.log_score(point, columns)[0])
    return Optimum(
        form.name,
        law.block,
        k,
        exponent(float(share[0]), shares, "N*"),
        exponent(float(1 - share[0]), 1 - shares, "D*"),
        tuple(
            OptimumAt(
                float(budget),
                float(np.exp(log_n[0, place])),
                interval(np.exp(all_n[:, place])),
                float(np.exp(log_d[0, place])),
                interval(np.exp(all_d[:, place])),
                float(scores[place]),
            )
            for place, budget in enumerate(budgets)
        ),
    )
