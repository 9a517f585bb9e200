"""The cells that a forecast or an advice is about: those that a study plans, and those of its ladder that it does not.

A target is a size ("XL"), a cell ("XL/2") or an expression over the columns of a plan ("size == 'XL' and patch_size == 2").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.fits.observations import CELL, Observations
from analysis.frames import Frame, frame
from analysis.protocols import Protocol
from analysis.results import StudyResults
from dit.design.config import LADDERS, Evaluation, RunConfig, model_config
from dit.design.query import filter_rows
from dit.design.rows import VARIANT, Row, planned_row, varied
from dit.errors import UserError
from dit.store.study import PLANNED, RunStore, load_study


@dataclass(frozen=True)
class Target:
    """A cell with the steps at which it is scored. `row`: the columns of a plan; `status`: that of its run, or "not in the study"."""

    row: Row
    status: str
    steps: tuple[int, ...]

    @property
    def cell(self) -> tuple[str, str, int, int]:
        """What tells cells apart: block, size, patch size, image size."""
        return str(self.row["block"]), str(self.row["size"]), int(self.row["patch_size"]), int(self.row["image_size"])

    @property
    def name(self) -> str:
        """Block, size and patch size."""
        return f"{self.row['block']} {self.row['size']}/{self.row['patch_size']}"

    def at(self, step: int) -> Row:
        """The columns that depend on the training step, at that step."""
        factor = step / self.row["step"]
        images, compute = self.row["images_seen"] * step // self.row["step"], self.row["train_gflops"] * factor
        return {**self.row, "step": step, "images_seen": images, "train_gflops": compute}


def declared_part(evaluation: Evaluation, protocol: Protocol) -> bool:
    """Whether an evaluation declares the protocol: every part that both name agrees."""
    declared = {name: value for name, value in vars(evaluation).items() if name != "step"}
    return all(protocol.get(name, value) == value for name, value in declared.items())


def planned_targets(study: StudyResults, observations: Observations) -> list[Target]:
    """Every run of the study at the observations' image size and of their variant, then the cells of its ladder that it lacks.

    Where there is no study on disk (the published numbers): the cells that have a score under the observations' protocol.
    """
    if study.folder is None:
        return _published_targets(observations)
    protocol, images = observations.protocol, set(observations.rows["image_size"])
    declared = load_study(study.folder)
    apart = varied(declared.runs)
    chosen = set(observations.rows[VARIANT]) if VARIANT in observations.rows else {None}
    runs = tuple(
        run for run in declared.runs if run.data.image_size in images and apart.get(run.run, {}).get(VARIANT) in chosen
    )
    found = [
        Target(planned_row(run, declared.name), RunStore(study.folder, run).status()["state"], _steps(run, protocol))
        for run in runs
    ]
    there = {target.cell for target in found}
    for run in _ladder_runs(runs):
        target = Target(planned_row(run, declared.name), "not in the study", _steps(run, protocol))
        if target.cell not in there:
            there.add(target.cell)
            found.append(target)
    return found


def _steps(run: RunConfig, protocol: Protocol) -> tuple[int, ...]:
    """Training steps at which the run is scored under the protocol."""
    steps = {evaluation.step for evaluation in run.evaluations if declared_part(evaluation, protocol)}
    return tuple(sorted(steps)) or (run.steps,)


def _ladder_runs(runs: tuple[RunConfig, ...]) -> list[RunConfig]:
    """For each block and patch size of the study, every size of its ladder, trained and scored as the study's first run there is."""
    first: dict[tuple[str, int], RunConfig] = {}
    for run in runs:
        if run.model.ladder in LADDERS:
            first.setdefault((run.model.block, run.model.patch_size), run)
    found = []
    for run in first.values():
        for size in LADDERS[run.model.ladder]:
            model = model_config(run.model.block, size, run.model.patch_size, run.data, run.model.ladder)
            found.append(
                replace(
                    run,
                    model=replace(
                        run.model,
                        **{name: getattr(model, name) for name in ("depth", "hidden_size", "num_heads", "size")},
                    ),
                )
            )
    return found


def _published_targets(observations: Observations) -> list[Target]:
    found: dict[tuple, Target] = {}
    for row in observations.rows.sort_values("step").to_dict("records"):
        key = tuple(row[name] for name in CELL)
        steps = found[key].steps if key in found else ()
        found[key] = Target(row, "done", tuple(sorted({*steps, int(row["step"])})))
    return list(found.values())


def expression(target: str, sizes: set[str]) -> str:
    """The expression that a target stands for: "XL" is a size and "XL/2" a cell where there is such a size."""
    size, _, patch = target.partition("/")
    if size in sizes and (not patch or patch.isdigit()):
        return f"size == '{size}'" + (f" and patch_size == {patch}" if patch else "")
    return target


def select(targets: list[Target], target: str) -> list[Target]:
    """The cells that a target names, each once, seeds together.

    Raises:
        UserError: if it is neither a size, a cell nor an expression, or names no cell.
    """
    table: Frame = frame([one.row for one in targets])
    sizes = {str(one.row["size"]) for one in targets}
    try:
        chosen = filter_rows(table, expression(target, sizes))
    except UserError as error:
        said = str(error).replace("--where", "--for", 1)
        raise UserError(f"{said}; or a size ({', '.join(sorted(sizes))}), or a cell like XL/2") from error
    found: dict[tuple, Target] = {}
    for index in chosen.index:
        found.setdefault(targets[index].cell, targets[index])
    if not found:
        raise UserError(
            f"--for {target!r} names no cell: expected a size ({', '.join(sorted(sizes))}) or an expression"
        )
    return list(found.values())


def of_cell(observations: Observations, cell: tuple) -> np.ndarray:
    """Mask (n,) of the rows of a cell."""
    rows = observations.rows
    return (
        (rows["block"] == cell[0])
        & (rows["size"] == cell[1])
        & (rows["patch_size"] == cell[2])
        & (rows["image_size"] == cell[3])
    ).to_numpy(dtype=bool)


def begun(target: Target) -> bool:
    """Whether the cell's training has begun."""
    return target.status not in (PLANNED, "not in the study")
