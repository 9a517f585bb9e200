"""How an evaluation draws: its plan of model calls under a run's objective, what that costs, and its weak model (no JAX)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit.design.parts import is_known, named
from dit.design.samplers import Counted, Plan, Sampler, drawing, plan
from dit.errors import UserError

if TYPE_CHECKING:
    from dit.design.config import Evaluation, RunConfig


@dataclass(frozen=True)
class WeakModel:
    """Another cell of the study, as the model to guide away from: output = weak + cfg_scale · (own - weak) (Karras et al. 2024).

    `gflops` is one forward pass of it for one image; its averaged weights after `step` are used.
    """

    run: str
    step: int
    data: str
    objective: str
    gflops: float


def autoguided_by(run: RunConfig, step: int | None = None) -> WeakModel:
    """The weak model that `run` is after `step`, by default at its end; a step that the run keeps weights of."""
    from dit.design.flops import gflops

    return WeakModel(run.run, step or run.steps, run.data.name, run.objective.name, gflops(run.model))


def check_guidance(evaluation: Evaluation) -> None:
    """Refuse what says nothing.

    Raises:
        UserError: for an interval without its two ends in order, or either of them without guidance.
    """
    interval = evaluation.cfg_interval
    if interval is not None and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        raise UserError(f"cfg_interval is {interval!r}: expected (low, high) with 0 <= low < high")
    for name in ("cfg_interval", "autoguidance"):
        if getattr(evaluation, name) is not None and evaluation.cfg_scale == 1:
            raise UserError(f"{name} is set, but cfg_scale is 1, which is no guidance: set cfg_scale")


def from_json_values(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's fields as they were before JSON made lists and dictionaries of them."""
    fields = dict(evaluation)
    fields["sampler_options"] = tuple((name, value) for name, value in fields.get("sampler_options", ()))
    if fields.get("cfg_interval") is not None:
        fields["cfg_interval"] = tuple(fields["cfg_interval"])
    if fields.get("autoguidance") is not None:
        fields["autoguidance"] = WeakModel(**fields["autoguidance"])
    return fields


def sampler_of(evaluation: Evaluation) -> Sampler:
    """The record of the evaluation's sampler."""
    return named(Sampler, evaluation.sampler, evaluation.sampler_source)


def plan_of(run: RunConfig, evaluation: Evaluation) -> Plan | None:
    """The model calls of an image of the evaluation; None where a part of the user's own was not read.

    Raises:
        UserError: if the sampler does not fit the run's objective or cannot take so many steps, guidance never acts, or the weak model is
            of another data set or objective.
    """
    weak = evaluation.autoguidance
    if weak is not None:
        pairs = (("data set", weak.data, run.data.name), ("objective", weak.objective, run.objective.name))
        for what, theirs, own in pairs:
            if theirs != own:
                expected = f"expected a cell of '{own}', as the run is"
                raise UserError(f"autoguidance by {weak.run}, of {what} '{theirs}': {expected}")
    if not run.objective.is_known or not is_known(Sampler, evaluation.sampler, evaluation.sampler_source):
        return None
    sampler = sampler_of(evaluation)
    if isinstance(sampler.visits, Counted):
        return None
    return plan(run.objective, run.diffusion, sampler, *drawing(evaluation))


def calls_of(run: RunConfig, evaluation: Evaluation) -> tuple[int, int]:
    """How often an image's sampler calls the model, and at how many of these calls guidance would act.

    Where a part of the user's own was not read, one call a step is taken for granted.
    """
    found = plan_of(run, evaluation)
    if found is not None:
        return found.nfe, found.guided_calls
    is_there = is_known(Sampler, evaluation.sampler, evaluation.sampler_source)
    counted = sampler_of(evaluation).visits if is_there else None
    if isinstance(counted, Counted):
        return counted.of(run, evaluation)
    return evaluation.sampling_steps, evaluation.sampling_steps
