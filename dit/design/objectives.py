"""What a model is trained to predict: one record each, and a run's choice among them (no JAX).

A record names its path, target, weighting, what the model sees as time and how many channels it predicts. The functions live in
`dit.diffusion.objectives`; one's own objective is a record with functions of one's own:

    Objective("x0", target=lambda level, x, noise: x, weight=lambda level: level.alpha / level.sigma)

A target is linear in image and noise, so that samplers can solve it for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dit.design import parts
from dit.design.checks import require_choice, require_number
from dit.design.parts import Part
from dit.design.schedule import FLOWS
from dit.errors import UserError

CHOICES = {
    "path": tuple(FLOWS),
    "predict": ("velocity", "noise", "score"),
    "weighting": ("none", "min_snr", "velocity", "likelihood"),
    "times": ("uniform", "logit_normal"),
}


@dataclass(frozen=True)
class Objective(Part):
    """What a model predicts and how its error is weighed. Functions are callables, or "module:attribute" of some.

    Attributes:
        target: `(level, image, noise, **values) -> images`, what the first channels of the output are compared with; linear in both.
        weight: `(level, **values) -> factor` of the squared error.
        process: "discrete" (timesteps), "flow" (t in [0, 1]) or "sigma" (σ): which noise levels there are, and so which samplers fit.
        times: `(key, **values) -> time` of a training example; the discrete process draws its timesteps uniformly.
        condition: `(level, **values) -> time` as the model sees it.
        scale: `(level, **values) -> factor` of the noised image as the model sees it.
        channels: channels predicted per channel of the input, any of these; what lies past the first half of two is dropped.
        losses: instead of the weighted squared error; `(model, table, image, labels, timesteps, noise) -> Losses`.
        values: names of the parameters, with the value each has unless a run sets it.
    """

    word: ClassVar[str] = "objective"
    target: str | Callable[..., Any] = field(kw_only=True)
    weight: str | Callable[..., Any] = field(default="dit.diffusion.objectives:one", kw_only=True)
    process: str = field(default="discrete", kw_only=True)
    times: str | Callable[..., Any] = field(default="dit.diffusion.objectives:uniform", kw_only=True)
    condition: str | Callable[..., Any] = field(default="dit.diffusion.objectives:timestep", kw_only=True)
    scale: str | Callable[..., Any] = field(default="dit.diffusion.objectives:one", kw_only=True)
    channels: tuple[int, ...] = field(default=(1,), kw_only=True)
    losses: str | Callable[..., Any] | None = field(default=None, kw_only=True)
    values: tuple[tuple[str, Any], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        require_choice(self.process, ("discrete", "flow", "sigma"), "process of an objective")
        super().__post_init__()


_HERE = "dit.diffusion.objectives:"
_TIMES = (("times", "uniform"), ("time_mean", 0.0), ("time_sd", 1.0), ("shift", 1.0))
_SNR = (("weighting", "none"), ("gamma", 5.0))

Objective(
    "ddpm", target=_HERE + "noise", channels=(2, 1), losses="dit.diffusion.process:training_losses"
)  # noise, and the variance where the model has channels for it
Objective("eps", target=_HERE + "noise", weight=_HERE + "noise_weight", values=_SNR)
Objective("v", target=_HERE + "variance_preserving_velocity", weight=_HERE + "v_weight", values=_SNR)
Objective("x", target=_HERE + "image", weight=_HERE + "image_weight", values=_SNR)
Objective(
    "flow",
    target=_HERE + "flow_target",
    weight=_HERE + "flow_weight",
    process="flow",
    times=_HERE + "flow_times",
    condition=_HERE + "time_from_noise",
    channels=(2, 1),
    values=(("path", "linear"), ("predict", "velocity"), ("weighting", "none"), *_TIMES),
)
Objective(
    "edm",
    target=_HERE + "preconditioned",
    process="sigma",
    times=_HERE + "log_normal",
    condition=_HERE + "quarter_log_sigma",
    scale=_HERE + "unit_variance",
    values=(("sigma_data", 0.5), ("time_mean", -1.2), ("time_sd", 1.2)),
)


@dataclass(frozen=True)
class ObjectiveConfig:
    """A run's objective: a record's name and what differs from the record's own values; None is the record's.

    `gamma` is min-SNR's; `times`, `time_mean` and `time_sd` say how t (of EDM: ln σ) is drawn; `shift` s sends t to st / (1 + (s - 1)t).
    `source` is the hash of the code of one's own objective.
    """

    name: str = "ddpm"
    path: str | None = None
    predict: str | None = None
    weighting: str | None = None
    gamma: float | None = None
    times: str | None = None
    time_mean: float | None = None
    time_sd: float | None = None
    shift: float | None = None
    sigma_data: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        parts.settle(self, "source", Objective, self.name)
        for name, value in self.given.items():
            self._check(name, value)
        if self.is_known:
            own = dict(self.record.values)
            for name, value in self.given.items():
                if name not in own:
                    known = ", ".join(own) or "nothing to set"
                    raise UserError(f"objective '{self.name}' has no {name}, which is set to {value!r}: it has {known}")
                if value == own[name]:
                    object.__setattr__(self, name, None)
            self._check_together()

    def _check(self, name: str, value: Any) -> None:
        if name in CHOICES:
            require_choice(value, CHOICES[name], name)
        elif name == "time_mean":
            require_number(self, name, low=-100)
        else:
            require_number(self, name, low=0, ends="(]")

    def _check_together(self) -> None:
        values = self.values
        weighting = values.get("weighting", "none")
        if self.record.process == "flow" and weighting == "min_snr":
            raise UserError("weighting 'min_snr' is of eps, v and x: expected none, velocity or likelihood of a flow")
        if self.record.process == "discrete" and weighting in ("velocity", "likelihood"):
            raise UserError(
                f"weighting '{weighting}' is of flows: expected none or min_snr for objective '{self.name}'"
            )
        if values.get("predict") == "velocity" and weighting != "none":
            raise UserError(
                f"weighting '{weighting}' is of a flow's noise or score: leave it out with predict='velocity'"
            )
        if self.gamma is not None and weighting != "min_snr":
            raise UserError(f"gamma is {self.gamma:g}, but weighting is '{weighting}': set weighting='min_snr'")

    @property
    def given(self) -> dict[str, Any]:
        """The parameters that are set."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name not in ("name", "source") and value is not None}

    @property
    def identity(self) -> dict[str, Any]:
        """What enters a run's identity: the name, the source where it has one, and what is set."""
        return {"name": self.name, **({"source": self.source} if self.source else {}), **self.given}

    @property
    def is_known(self) -> bool:
        """Whether the record is here; reading a study with an objective of one's own does without it."""
        return parts.is_known(Objective, self.name, self.source)

    @property
    def record(self) -> Objective:
        """The record.

        Raises:
            UserError: if there is none of the name.
        """
        return parts.named(Objective, self.name, self.source)

    @property
    def values(self) -> dict[str, Any]:
        """Every parameter of the record, as set or as it is by default."""
        return {**dict(self.record.values), **self.given}

    def check_model(self, multiple: int) -> None:
        """Refuse a model that predicts another `multiple` of its input's channels than the objective takes."""
        if self.is_known and multiple not in self.record.channels:
            expected = " or ".join(f"{n}" for n in self.record.channels)
            raise UserError(
                f"objective '{self.name}' takes {expected} channels per channel of the input, the model predicts {multiple}: "
                f"build it with learn_sigma={multiple == 1}"
            )
