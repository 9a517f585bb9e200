"""How images are drawn: one record per sampler, and the noise levels at which it calls the model (no JAX).

What a sampler costs is counted from the levels it visits: `plan` lists every model call of every step, and which of them are guided. The
steps themselves live in `dit.diffusion.samplers`; one's own sampler is a record with a step of one's own:

    Sampler("midpoint", step=midpoint, calls=2, processes=("flow",))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from dit.design import parts
from dit.design.checks import require_positive
from dit.design.objectives import Objective, ObjectiveConfig
from dit.design.parts import Part
from dit.design.schedule import (
    FLOWS,
    DiffusionConfig,
    Level,
    Schedule,
    discrete_points,
    exploding,
    flow_ends,
    linear_schedule,
    respace,
)
from dit.errors import UserError

if TYPE_CHECKING:
    from dit.design.config import Evaluation, RunConfig

Options = Mapping[str, Any]
Visits = Callable[[np.ndarray, Options], np.ndarray]
"""`(times, options) -> (steps, calls)`: the time of each model call, NaN for a call that a step does without; `times` rise from the end."""


def visits_start(times: np.ndarray, options: Options) -> np.ndarray:
    """One call, where a step starts."""
    return times[1:, None]


def visits_both_ends(times: np.ndarray, options: Options) -> np.ndarray:
    """A call at each end of a step; where the last step ends at no noise at all, the second has nothing to say and is left out."""
    ends = times[:-1].copy()
    if options.get("skip_clean", False):
        ends[0] = np.nan
    return np.stack([times[1:], ends], axis=1)


def visits_churned(times: np.ndarray, options: Options) -> np.ndarray:
    """Heun's calls with the first at σ̂ = σ(1 + γ), γ = min(S_churn / N, √2 - 1) for σ in [S_min, S_max] (Karras et al., Algorithm 2)."""
    both = visits_both_ends(times, options)
    sigma = both[:, 0]
    gamma = min(options["churn"] / len(sigma), 2**0.5 - 1)
    churned = (options["churn_min"] <= sigma) & (sigma <= options["churn_max"])
    both[:, 0] = np.where(churned, sigma * (1 + gamma), sigma)
    return both


_SCHEDULE = "dit.design.schedule:"


@dataclass(frozen=True)
class Sampler(Part):
    """A way of getting from noise to an image.

    Attributes:
        step: `(denoise, grid, index, x, memory, noise, **options) -> (x, memory)`, or "module:attribute" of it; step `index` goes from
            point index + 1 of the grid to point `index`, the last one is 0.
        calls: model calls a step.
        processes: kinds of process it integrates.
        options: names of its options, with the value each has unless an evaluation sets it.
        timesteps: `(trained timesteps, steps) -> list` of those that it visits of a discrete process.
        visits: at which times it calls the model.
        ends_early: whether a last step of its own, of one call, ends at no noise, from the `last_step_size` of its options.
    """

    word: ClassVar[str] = "sampler"
    step: str | Callable[..., Any] = field(kw_only=True)
    calls: int = field(default=1, kw_only=True)
    processes: tuple[str, ...] = field(default=("discrete", "flow", "sigma"), kw_only=True)
    options: tuple[tuple[str, Any], ...] = field(default=(), kw_only=True)
    timesteps: str | Callable[[int, int], list[int]] = field(default=_SCHEDULE + "even_timesteps", kw_only=True)
    visits: str | Visits | None = field(default=None, kw_only=True)
    ends_early: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require_positive(self, "calls")
        super().__post_init__()

    def as_data(self, runs: Iterable[RunConfig] = ()) -> dict[str, Any]:
        """Its fields; where code of the user's says at which levels it calls the model, how often it does in the study."""
        told = super().as_data()
        if not (callable(self.visits) or callable(self.timesteps)):
            return told
        mine = (self.name, self.source)
        its = [(run, one) for run in runs for one in run.evaluations if (one.sampler, one.sampler_source) == mine]
        plans = {calls_key(run, one): plan(run.objective, run.diffusion, self, *drawing(one)) for run, one in its}
        return told | {"counts": {key: [found.nfe, found.guided_calls] for key, found in plans.items()}}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Its fields; what was code of where it calls the model becomes a table of counts."""
        fields = super().from_data(data)
        counts = fields.pop("counts", None)
        return fields if counts is None else fields | {"visits": Counted(fields["name"], counts)}

    def fits(self, objective: Objective) -> bool:
        """Whether it draws from models trained on the objective."""
        return objective.process in self.processes


@dataclass(frozen=True)
class Counted:
    """Model calls of a user's sampler by evaluation, and the guided ones among them, as a study's record holds them."""

    name: str
    counts: Mapping[str, Sequence[int]]

    def of(self, run: RunConfig, evaluation: Evaluation) -> tuple[int, int]:
        """Of an evaluation of the run.

        Raises:
            UserError: for one that the study did not have.
        """
        key = calls_key(run, evaluation)
        if key not in self.counts:
            raise UserError(f"calls of sampler '{self.name}' were not counted for {run.run}: sweep the study again")
        calls, guided = self.counts[key]
        return calls, guided


def drawing(evaluation: Evaluation) -> tuple[int, tuple[tuple[str, Any], ...], tuple[float, float] | None]:
    """What of an evaluation `plan` is made for: steps, options and interval of guidance."""
    return evaluation.sampling_steps, evaluation.sampler_options, evaluation.cfg_interval


def calls_key(run: RunConfig, evaluation: Evaluation) -> str:
    """What the number of calls depends on."""
    return parts.digest([run.objective.identity, dataclasses.asdict(run.diffusion), *drawing(evaluation)])


_HERE = "dit.diffusion.samplers:"
_SIGMAS = (("sigma_min", 0.002), ("sigma_max", 80.0), ("rho", 7.0))
_CONTINUOUS = ("flow", "sigma")

Sampler("ddpm", step=_HERE + "ancestral", processes=("discrete",))
Sampler("ddim", step=_HERE + "ddim", processes=("discrete",), timesteps=_SCHEDULE + "strided_timesteps")
Sampler("euler", step=_HERE + "euler", processes=_CONTINUOUS, options=_SIGMAS)
Sampler("heun", step=_HERE + "heun", calls=2, processes=_CONTINUOUS, options=_SIGMAS)
Sampler(
    "euler_maruyama",
    step=_HERE + "euler_maruyama",
    processes=("flow",),
    options=(("diffusion", "sigma"), ("last_step", "mean"), ("last_step_size", 0.04)),
    ends_early=True,
)
Sampler(
    "edm",
    step=_HERE + "churned_heun",
    calls=2,
    processes=("sigma",),
    options=(*_SIGMAS, ("churn", 0.0), ("churn_min", 0.0), ("churn_max", 1e6), ("churn_noise", 1.0)),
    visits="dit.design.samplers:visits_churned",
)
Sampler("dpmpp_2m", step=_HERE + "dpmpp_2m", processes=("discrete", "sigma"), options=_SIGMAS)

CHOICES = {
    "diffusion": ("sigma", "kl", "linear"),
    "last_step": ("mean", "euler", "tweedie", "none"),
}


class Plan(NamedTuple):
    """The levels of one way of drawing, float64.

    Attributes:
        points: (steps + 1,) where steps start and end, from the image on; step k goes from point k + 1 to point k.
        calls: (steps, calls) the levels at which step k calls the model, time NaN where it does not, and whether guidance acts there.
        schedule: the respaced discrete process; None for the others.
        options: of the sampler, with the values that hold.
    """

    points: Level
    calls: Level
    schedule: Schedule | None
    options: dict[str, Any]

    @property
    def nfe(self) -> int:
        """Model calls to draw an image; a guided call is one."""
        return int(np.isfinite(self.calls.time).sum())

    @property
    def guided_calls(self) -> int:
        """Those of them at which guidance acts."""
        return int((np.isfinite(self.calls.time) & self.calls.guided).sum())


@functools.lru_cache(maxsize=1024)
def plan(
    objective: ObjectiveConfig,
    diffusion: DiffusionConfig,
    sampler: Sampler,
    steps: int,
    options: tuple[tuple[str, Any], ...] = (),
    interval: tuple[float, float] | None = None,
) -> Plan:
    """Where a sampler of `steps` steps calls a model of that objective.

    Args:
        options: of the sampler, where they are not its own.
        interval: guidance acts where low < σ <= high: σ is the path's sigma / alpha, and t for flows.

    Raises:
        UserError: if the sampler does not draw from such models, has no such option, or no call lies in the interval.
    """
    require_fit(objective, sampler)
    is_sigma = objective.record.process == "sigma"
    own = {name: value for name, value in sampler.options if is_sigma or name not in dict(_SIGMAS)}
    values = _checked(own, dict(options), sampler)
    if objective.record.process == "discrete":
        schedule = respace(linear_schedule(diffusion), parts.load(sampler.timesteps)(diffusion.timesteps, steps))
        points = discrete_points(schedule)
        visited = _at_points(points, sampler.calls)
        measure = visited.sigma / visited.alpha
    else:
        schedule, path = None, path_of(objective)
        times = _times(objective, sampler, values, steps)
        visits = parts.load(sampler.visits) or (visits_start if sampler.calls == 1 else visits_both_ends)
        points, visited = path(times), path(visits(times, {**values, "skip_clean": is_sigma}))
        if visited.time.shape[1] < sampler.calls:
            raise UserError(
                f"sampler '{sampler.name}' has {sampler.calls} calls a step: say at which levels with visits="
            )
        measure = visited.time
    guided = np.ones(measure.shape, bool)
    if interval is not None:
        low, high = interval
        guided = (low < measure) & (measure <= high)
        if not guided.any():
            word = "t" if objective.record.process == "flow" else "σ"
            raise UserError(
                f"cfg_interval ({low:g}, {high:g}] holds none of the noise levels that {steps} steps of '{sampler.name}' visit: "
                f"{word} goes from {np.nanmin(measure):.4g} to {np.nanmax(measure):.4g}"
            )
    return Plan(points, visited._replace(guided=guided), schedule, values)


def require_fit(objective: ObjectiveConfig, sampler: Sampler) -> None:
    """Refuse a sampler that cannot draw from models of the objective."""
    if not sampler.fits(objective.record):
        all_of = [parts.latest(Sampler, name) for name in parts.names(Sampler)]
        of = [one for one in all_of if one is not None and one.fits(objective.record)]
        raise UserError(
            f"sampler '{sampler.name}' does not draw from objective '{objective.name}': "
            f"expected one of {', '.join(one.name for one in of)}"
        )


def path_of(objective: ObjectiveConfig) -> Callable[..., Level]:
    """The path of a continuous objective: that of its flow, or σ's."""
    return FLOWS[objective.values.get("path", "linear")] if objective.record.process == "flow" else exploding


def _times(objective: ObjectiveConfig, sampler: Sampler, options: dict[str, Any], steps: int) -> np.ndarray:
    """Times of the points, rising from the image's: even in t, or EDM's σ (Karras et al., eq. 5)."""
    if objective.record.process == "sigma":
        low, high, rho = ({**dict(_SIGMAS), **options}[name] for name, _ in _SIGMAS)
        ramp = np.linspace(1, 0, steps) if steps > 1 else np.zeros(1)
        sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        return np.append(0.0, sigmas)
    low, high = flow_ends(objective.values.get("path", "linear"), objective.values.get("predict", "velocity"))
    if options.get("diffusion") == "kl":
        high = min(high, 1 - 1e-3)  # its coefficient has no bound at t = 1
    if not sampler.ends_early or options["last_step"] == "none":
        return np.linspace(low, high, steps + 1)
    return np.append(0.0, np.linspace(options["last_step_size"], high, steps))


def _at_points(points: Level, calls: int) -> Level:
    """The level at which each step of a discrete process starts; all of its calls lie there."""
    return Level(*(np.repeat(np.asarray(part)[1:, None], calls, axis=1) for part in points[:5]))


def _checked(values: dict[str, Any], given: Options, sampler: Sampler) -> dict[str, Any]:
    for name, value in given.items():
        if name not in values:
            known = ", ".join(values) or "none"
            raise UserError(f"sampler '{sampler.name}' has no option {name}: it has {known}")
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"{name} is {value!r}: expected one of {', '.join(CHOICES[name])}")
        if name not in CHOICES and (not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0):
            raise UserError(f"{name} is {value!r}: expected a number of 0 or more")
    return {**values, **given}
