"""The forms of law: what is fitted to log scores, in which variables, and how many levels of each a form needs.

An additive form is L = E + sum_j A_j v_j^-a_j with E, A_j >= 0: linear in its amplitudes once the exponents are given. A log-linear form is
log L = X theta. Variables are centred on their geometric mean inside; reported parameters are in the variables' own units.
Sources: Kaplan et al. arXiv:2001.08361 (power law), Hoffmann et al. arXiv:2203.15556 Eq. 2 (E + A/N^a + B/D^b), Liang et al.
arXiv:2410.08184 (FID of diffusion transformers follows a power law in compute).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from analysis.fits.observations import Observations

MAX_EXPONENT = 4.0
LOOSE_EXPONENT = 0.95 * MAX_EXPONENT  # an interval that ends above it is the bound's, not the data's
SYMBOLS = {"train_gflops": "C", "params": "N", "tokens": "T", "images_seen": "D"}
_AMPLITUDES = ("A", "B", "G")
_EXPONENTS = ("a", "b", "g")


@dataclass(frozen=True)
class Form:
    """One form. `needs`: least levels of each variable. `steps`: fitted at the common training step, or at all steps.

    `theta` (b, p) holds b parameter vectors; u (n, k) the centred logarithms of the variables; scores are scaled to a geometric mean of 1.
    `group` (n,) numbers the block of each point: block g > 0 has its own log multiplier of the first variable, the last parameters.
    """

    name: str
    equation: str
    variables: tuple[str, ...]
    needs: tuple[int, ...]
    steps: str = "common"
    additive: bool = True
    irreducible: bool = False
    interaction: bool = False

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names in the order of theta, without the blocks' multipliers."""
        terms = len(self.variables)
        if self.additive:
            return (*(("E",) if self.irreducible else ()), *_AMPLITUDES[:terms], *_EXPONENTS[:terms])
        if self.name == "power":
            return ("A", "a")
        return ("c", *(f"c_{SYMBOLS[name]}" for name in self.variables), *(("c_NT",) if self.interaction else ()))

    @property
    def size(self) -> int:
        """Number of parameters, without the blocks' multipliers."""
        return len(self.parameter_names)

    def bounds(self, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of theta, p floats each."""
        if not self.additive:
            return np.full(self.size, -np.inf), np.full(self.size, np.inf)
        terms, first = len(self.variables), int(self.irreducible)
        lower = np.zeros(first + 2 * terms + groups - 1)
        upper = np.full(lower.size, np.inf)
        upper[first + terms : first + 2 * terms] = MAX_EXPONENT
        lower[first + 2 * terms :] = -12.0
        upper[first + 2 * terms :] = 12.0
        return lower, upper

    def log_score(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """Log of the scaled scores (b, n)."""
        if not self.additive:
            return theta @ self.design(u).T
        power = self._powers(theta, u, group)[1]
        return np.log(self._value(theta, power))

    def jacobian(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """Derivative (b, n, p) of `log_score` by theta."""
        if not self.additive:
            design = self.design(u)
            return np.broadcast_to(design, (len(theta), *design.shape))
        terms, first = len(self.variables), int(self.irreducible)
        at, power = self._powers(theta, u, group)
        share = power / self._value(theta, power)[..., None]
        slope = -theta[:, None, first : first + terms] * share
        jacobian = np.empty((len(theta), len(u), theta.shape[1]))
        if first:
            jacobian[..., 0] = 1 / self._value(theta, power)
        jacobian[..., first : first + terms] = share
        jacobian[..., first + terms : first + 2 * terms] = slope * at
        exponent = theta[:, first + terms : first + terms + 1]
        for place in range(first + 2 * terms, theta.shape[1]):
            jacobian[..., place] = -slope[..., 0] * exponent * (group == place - first - 2 * terms + 1)
        return jacobian

    def _powers(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Centred log variables, shifted by the blocks' multipliers, and v_j^-a_j; (b or 1, n, k) and (b, n, k)."""
        terms, first = len(self.variables), int(self.irreducible)
        at = u[None]
        if theta.shape[1] > first + 2 * terms:
            assert group is not None
            shift = np.concatenate([np.zeros((len(theta), 1)), theta[:, first + 2 * terms :]], axis=1)[:, group]
            at = np.repeat(at, len(theta), axis=0)
            at[..., 0] -= shift
        return at, np.exp(-theta[:, None, first + terms : first + 2 * terms] * at)

    def _value(self, theta: np.ndarray, power: np.ndarray) -> np.ndarray:
        terms, first = len(self.variables), int(self.irreducible)
        value = np.einsum("bnk,bk->bn", power, theta[:, first : first + terms])
        return np.maximum(value + theta[:, :1] if first else value, 1e-300)

    def design(self, u: np.ndarray) -> np.ndarray:
        """Design matrix (n, p) of a log-linear form."""
        columns = [np.ones(len(u)), *(-u.T if self.name == "power" else u.T)]
        return np.stack([*columns, *([u[:, 0] * u[:, 1]] if self.interaction else [])], axis=1)

    def natural(self, theta: np.ndarray, centers: np.ndarray, scale: float) -> np.ndarray:
        """Theta (b, p) in the variables' own units: amplitudes at v = 1, factors of compute.

        Coefficients of a surface stay those of the centred logarithms: its exponents where the data are, not at N = 1 and T = 1.
        """
        natural = np.array(theta, dtype=float)
        if self.name == "power":
            with np.errstate(
                over="ignore"
            ):  # three cells hardly hold a slope: the score at v = 1 of a replicate may be infinite
                natural[:, 0] = scale * np.exp(theta[:, 0] + theta[:, 1] * centers[0])
        elif self.additive:
            terms, first = len(self.variables), int(self.irreducible)
            exponent = theta[:, first + terms : first + 2 * terms]
            natural[:, :first] *= scale
            natural[:, first : first + terms] *= scale * np.exp(exponent * centers)
            natural[:, first + 2 * terms :] = np.exp(theta[:, first + 2 * terms :])
        else:
            natural[:, 0] += np.log(scale)
        return natural


_FORMS = (
    Form("power", "L = A C^-a", ("train_gflops",), (3,), additive=False),
    Form("power+E", "L = E + A C^-a", ("train_gflops",), (4,), irreducible=True),
    Form("params+tokens", "L = E + A N^-a + B T^-b", ("params", "tokens"), (3, 3), irreducible=True),
    Form(
        "surface",
        "log L = c + c_N n + c_T t + c_NT n t, n and t the logs of N and T over their centre",
        ("params", "tokens"),
        (2, 2),
        additive=False,
        interaction=True,
    ),
    Form("params+images", "L = E + A N^-a + B D^-b", ("params", "images_seen"), (3, 3), "all", irreducible=True),
    Form(
        "params+tokens+images",
        "L = E + A N^-a + B T^-b + G D^-g",
        ("params", "tokens", "images_seen"),
        (3, 3, 3),
        "all",
        irreducible=True,
    ),
    Form(
        "surface+images",
        "log L = c + c_N n + c_T t + c_D d + c_NT n t, n, t and d the logs of N, T and D over their centre",
        ("params", "tokens", "images_seen"),
        (2, 2, 2),
        "all",
        additive=False,
        interaction=True,
    ),
)
FORMS: dict[str, Form] = {form.name: form for form in _FORMS}
"""Every form by name. L is the score; E, A, B, G >= 0; logarithms are natural."""


def forms_for(observations: Observations) -> list[str]:
    """Names of the forms that may be fitted: a table knows nothing of image tokens."""
    return [name for name, form in FORMS.items() if not (observations.of_table and "tokens" in form.variables)]
