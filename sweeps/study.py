"""From a study's name or file to its cells: load the declaration, refuse equal cells, take the subset asked for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import experiments
from dit.design import parts
from dit.design.blocks import Block
from dit.design.config import ModelConfig, RunConfig
from dit.design.features import check_scored
from dit.design.rows import planned_row, varied
from dit.design.sources import files_beside, is_users
from dit.errors import UserError
from dit.store import kept
from dit.store.study import Study, load_study, read_record

Result = TypeVar("Result")


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))


def declared(name: str, check: bool = False) -> Study:
    """The study of that name, in the Python file at that path, or on record in that folder, of which nothing is run.

    Args:
        check: whether to hold each of the study's own blocks against the traced model: its count and the shape that it gives back.

    Raises:
        UserError: for an unknown name, a file that does not run, no `runs()`, no cells, two equal cells, or a block that is not as it says.
    """
    if Path(name).is_dir() and name not in names():
        return load_study(Path(name))
    with _loaded(name) as (module, title, files):
        if not callable(getattr(module, "runs", None)):
            raise UserError(f"study '{name}' has no runs(): define runs() -> list[RunConfig] in it")
        runs = _users(Path(module.__file__ or name), lambda: tuple(module.runs()))
        if not runs or not all(isinstance(run, RunConfig) for run in runs):
            raise UserError(f"runs() of study '{name}' gave {len(runs)} cells: expected a non-empty list of RunConfig")
        own = tuple(parts.made())
        _users(Path(module.__file__ or name), lambda: _count(own, runs, check))
    first: dict[str, int] = {}
    for number, run in enumerate(runs):
        check_scored(run)
        if run.hash in first:
            raise UserError(
                f"study '{name}' has two equal cells, numbers {first[run.hash]} and {number} ({run.run}): "
                "give them different seeds, or one cell with both evaluations"
            )
        first[run.hash] = number
    return Study(title, (module.__doc__ or "").strip(), runs, own, files)


def declared_resources(name: str) -> Callable[[RunConfig], Any] | None:
    """What the study's own `resources(run)` says that a cell needs of a cluster; None for a study without one.

    Raises:
        UserError: as `declared` does; the function itself, if it breaks at a cell.
    """
    if Path(name).is_dir() and name not in names():
        return None
    with _loaded(name) as (module, _, _):
        own = getattr(module, "resources", None)
    if not callable(own):
        return None
    return lambda run: _users(Path(module.__file__ or name), lambda: own(run))


def run_kept(folder: Path) -> None:
    """Run the study's own file as its folder keeps it, so that the parts on record can be trained and sampled; nothing without parts.

    Raises:
        UserError: if a file is not the one that was swept, or what it makes is not what the record says.
    """
    value = read_record(folder / "study.json", runs=list)
    if not value.get("parts"):
        return
    study = load_study(folder)
    counts = {(part.name, part.source): part.count for part in study.parts if isinstance(part, Block)}
    kept.checked(folder, value.get("files", {}))
    there, beside = set(sys.modules), (folder / kept.FOLDER).resolve()
    with parts.of_a_study():
        sys.path.insert(0, str(beside))
        _module_at((folder / kept.FILE).resolve())
        now = parts.made()
    _forget(set(sys.modules) - there, beside)
    for part in now:
        if isinstance(part, Block) and part.count is None and (part.name, part.source) in counts:
            object.__setattr__(part, "count", counts[part.name, part.source])
    made = {(type(part).__name__, part.name, part.source) for part in now}
    words = {kind.__name__: kind.word for kind in parts.Part.__subclasses__()}
    for kind, name, _ in sorted(set().union(*(run.own_parts for run in study.runs)) - made):
        raise UserError(
            f"{words[kind]} '{name}' of {folder} is not what its study.py makes here: data or a file outside it has changed"
        )


def run_kept_of(checkpoint: Path) -> None:
    """The same for the study that a run's folder, or the folder itself, belongs to; nothing if there is none."""
    for folder in (checkpoint, *checkpoint.absolute().parents[1:2]):
        if (folder / "study.json").is_file():
            run_kept(folder)


def _count(own: tuple[parts.Part, ...], runs: tuple[RunConfig, ...], check: bool) -> None:
    for block in own:
        if not isinstance(block, Block):
            continue
        all_models = dict.fromkeys(run.model for run in runs)
        models = [one for one in all_models if isinstance(one, ModelConfig) and one.block_source == block.source]
        if block.count is None:
            print(f"block '{block.name}' has no count of its own: counted from the traced model", file=sys.stderr)
            object.__setattr__(block, "count", parts.load("dit.model.traced:block_count"))
        elif check:
            for model in models:
                parts.load("dit.model.traced:require_count")(model)


@contextlib.contextmanager
def _loaded(name: str) -> Iterator[tuple[ModuleType, str, dict[str, str]]]:
    """The study's module, its name, and the text of its file and those beside it; its folder is on the path within."""
    path = Path(name)
    if path.suffix != ".py" and "/" not in name:
        if name not in names():
            raise UserError(
                f"unknown study '{name}': expected one of {', '.join(names())}, or the path of a Python file with runs()"
            )
        with parts.of_a_study():
            yield importlib.import_module(f"experiments.{name}"), name, {}
        return
    folder = path.resolve().parent
    before, there = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        with parts.of_a_study():
            module = _module_at(path)
            beside = [file for file in files_beside(path) if file.is_relative_to(folder)]
            files = {
                f"{kept.FOLDER}/{file.relative_to(folder).as_posix()}": file.read_text(encoding="utf8")
                for file in beside
            }
            yield module, path.stem, {kept.FILE: path.read_text(encoding="utf8"), **files}
    finally:
        sys.path[:] = before
        _forget(set(sys.modules) - there - {f"study_{path.stem}"}, folder)


def _forget(modules: set[str], folder: Path) -> None:
    """Let another study import files of its own by the names of those in the folder."""
    for name in modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and is_users(Path(file).resolve()) and Path(file).resolve().is_relative_to(folder):
            del sys.modules[name]


def _module_at(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no study file at {path}: expected a Python file with runs(), or one of {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: expected a study module with runs()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in it looks itself up there
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

    apart = varied(study.runs)
    rows = [planned_row(run, study.name, apart=apart.get(run.run)) for run in study.runs]
    chosen = {row["run"] for row in select(rows, where)}
    if not chosen:
        raise UserError(f"no cell of study '{study.name}' satisfies {where!r}: loosen --where")
    return tuple(run for run in study.runs if run.run in chosen)
