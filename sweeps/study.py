"""From a study's name or file to its cells: load the declaration, refuse equal cells, take the subset asked for."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import experiments
from dit.design.config import RunConfig
from dit.design.rows import planned_row, variants
from dit.errors import UserError
from dit.store.study import Study

Result = TypeVar("Result")


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))


def declared(name: str) -> Study:
    """The study of that name, or in the Python file at that path.

    Raises:
        UserError: for an unknown name, a file that does not run, no `runs()`, no cells, or two equal cells.
    """
    module, title = _module(name)
    if not callable(getattr(module, "runs", None)):
        raise UserError(f"study '{name}' has no runs(): define runs() -> list[RunConfig] in it")
    runs = _users(Path(module.__file__ or name), lambda: tuple(module.runs()))
    if not runs or not all(isinstance(run, RunConfig) for run in runs):
        raise UserError(f"runs() of study '{name}' gave {len(runs)} cells: expected a non-empty list of RunConfig")
    first: dict[str, int] = {}
    for number, run in enumerate(runs):
        if run.hash in first:
            raise UserError(
                f"study '{name}' has two equal cells, numbers {first[run.hash]} and {number} ({run.run}): "
                "give them different seeds, or one cell with both evaluations"
            )
        first[run.hash] = number
    return Study(title, (module.__doc__ or "").strip(), runs)


def declared_resources(name: str) -> Callable[[RunConfig], Any] | None:
    """What the study's own `resources(run)` says that a cell needs of a cluster; None for a study without one.

    Raises:
        UserError: as `declared` does; the function itself, if it breaks at a cell.
    """
    module, _ = _module(name)
    own = getattr(module, "resources", None)
    if not callable(own):
        return None
    return lambda run: _users(Path(module.__file__ or name), lambda: own(run))


def _module(name: str) -> tuple[ModuleType, str]:
    path = Path(name)
    if path.suffix == ".py" or "/" in name:
        return _module_at(path), path.stem
    if name in names():
        return importlib.import_module(f"experiments.{name}"), name
    raise UserError(
        f"unknown study '{name}': expected one of {', '.join(names())}, or the path of a Python file with runs()"
    )


def _module_at(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no study file at {path}: expected a Python file with runs(), or one of {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: expected a study module with runs()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in it looks itself up there
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(
            str(path.parent.resolve())
        )  # it may import the files beside it, which hide nothing of the package's
    loader = spec.loader
    _users(path, lambda: loader.exec_module(module))
    return module


def _users(path: Path, call: Callable[[], Result]) -> Result:
    """Call the user's own code; if it breaks, say at which line of the file."""
    try:
        return call()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = "" if line is None else f" at line {line}"
        raise UserError(f"study file {path} failed{where}: {type(error).__name__}: {error}") from error


def subset(study: Study, where: str | None) -> tuple[RunConfig, ...]:
    """The cells whose planned row satisfies `where`, all without it.

    Raises:
        UserError: if the expression does not parse, names an unknown column, or matches no cell.
    """
    if where is None:
        return study.runs
    from dit.design.query import select

    named = variants(study.runs)
    rows = [planned_row(run, study.name, variant=named.get(run.run)) for run in study.runs]
    chosen = {row["run"] for row in select(rows, where)}
    if not chosen:
        raise UserError(f"no cell of study '{study.name}' satisfies {where!r}: loosen --where")
    return tuple(run for run in study.runs if run.run in chosen)
