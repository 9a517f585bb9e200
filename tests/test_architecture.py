"""The rooms and who may look into which: import directions from the syntax trees, and how long files and functions are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("dit", "experiments", "sweeps", "analysis")
FRAMEWORKS = {"jax", "jaxlib", "flax", "optax", "orbax", "torch"}
WITHOUT_JAX = ("dit.config", "dit.errors", "dit.design", "dit.store")
MAY_IMPORT = {
    "design": set(),
    "model": {"design"},
    "diffusion": {"design"},
    "store": {"design"},
    "hosts": {"store"},
    "weights": {"design", "model", "store"},
    "data": {"design", "hosts", "store", "weights"},
    "train": {"design", "model", "diffusion", "store", "hosts", "weights", "data"},
    "score": {"design", "model", "diffusion", "store", "hosts", "weights", "data", "train"},
    "runs": {"design", "model", "diffusion", "store", "hosts", "weights", "data", "train", "score"},
}
"""Which rooms of the library each room imports, besides itself: one way, so that no two rooms need each other."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def imports(module: str, top_level_only: bool = False) -> set[str]:
    """Full names of what a module imports: `from a import b` is `a.b`. Imports for the type checker alone do not count."""
    return _imports(
        ast.parse(MODULES[module].read_text()), module, MODULES[module].name == "__init__.py", top_level_only
    )


def _imports(tree: ast.AST, module: str, is_package: bool, top_level_only: bool) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found |= set().union(*(_imports(other, module, is_package, top_level_only) for other in node.orelse))
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            found |= _imports(node, module, is_package, top_level_only)
    return found


def reaches(found: set[str], *names: str) -> set[str]:
    """Those of the imports that are, or lie in, one of the named modules."""
    return {one for one in found for name in names if one == name or one.startswith(name + ".")}


def is_cli(module: str) -> bool:
    """Entry points: the command line, and the three public functions in `dit/__init__.py`."""
    return module in ("dit", "dit.cli", "dit.__main__") or module.startswith("dit.cli.")


def test_the_reader_of_imports_sees_every_kind():
    code = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\nif TYPE_CHECKING:\n    import h\ndef i():\n    import j\n"
    tree = ast.parse(code)
    assert _imports(tree, "p.q.r", False, False) == {"a.b", "c.d", "p.q.e", "p.f.g", "j"}
    assert _imports(tree, "p.q.r", False, True) == {"a.b", "c.d", "p.q.e", "p.f.g"}
    assert _imports(ast.parse("from . import e"), "p.q", True, False) == {"p.q.e"}
    assert reaches({"jax.numpy", "jaxtyping.Array"}, "jax") == {"jax.numpy"}


def test_every_room_is_there():
    assert {module.split(".")[0] for module in MODULES} == set(ROOMS)
    assert {"dit.model.transformer", "dit.cli.sweep", "sweeps.worker", "experiments.demo", "analysis.results"} <= set(
        MODULES
    )


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("dit") and not is_cli(module)])
def test_the_library_imports_nothing_of_its_siblings(module):
    assert not reaches(imports(module), "experiments", "sweeps", "analysis", "tests")


@pytest.mark.parametrize("module", [module for module in MODULES if module.count(".") > 1 and not is_cli(module)])
def test_rooms_of_the_library_look_one_way(module):
    if module.startswith("dit."):
        room = module.split(".")[1]
        allowed = {f"dit.{name}" for name in MAY_IMPORT[room] | {room}} | {
            "dit.duration",
            "dit.errors",
            "dit.__version__",
        }
        assert reaches(imports(module), "dit") == reaches(imports(module), *allowed)


def test_no_room_is_crowded():
    for room in MAY_IMPORT:
        assert len(list((ROOT / "dit" / room).glob("*.py"))) < 20
    assert {path.name for path in (ROOT / "dit").glob("*.py")} == {
        *("__init__.py", "__main__.py", "config.py", "duration.py", "errors.py")
    }


@pytest.mark.parametrize("module", MODULES)
def test_entry_points_are_not_imported(module):
    if module == "dit.__main__":
        assert reaches(imports(module), "dit.cli") == {"dit.cli.main"}
    elif module != "dit.cli":  # it loads its verbs by name
        allowed = {"sweeps.worker"} if module == "dit.cli.worker" else set()
        shared = {"dit.cli.progress.ImageProgress"}
        assert not reaches(imports(module) - shared, *({"dit.cli", "dit.__main__", "sweeps.worker"} - allowed))


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("experiments")])
def test_experiments_only_declare(module):
    assert imports(module) == reaches(
        imports(module), "dit.config", "dit.design.config", "experiments", "dataclasses", "__future__"
    )


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("analysis")])
def test_analysis_reads_records_and_trains_nothing(module):
    readers = ("dit.__version__", "dit.config", "dit.duration", "dit.errors", "dit.design", "dit.store")
    found = imports(module)
    assert not reaches(found, *FRAMEWORKS, "sweeps", "experiments")
    assert reaches(found, "dit") == reaches(found, *readers)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("sweeps")])
def test_sweeps_know_no_science_and_only_workers_need_jax(module):
    assert not reaches(imports(module, top_level_only=True), *FRAMEWORKS)
    assert not reaches(imports(module), "analysis")
    if module != "sweeps.worker":
        assert not reaches(
            imports(module),
            *FRAMEWORKS,
            "dit.model.transformer",
            "dit.train.step",
            "dit.runs.run",
            "dit.diffusion.process",
            "dit.score.scoring",
        )


def test_the_formula_does_not_know_the_network():
    for module in ("dit.design.flops", "dit.design.unet.flops", "dit.design.blocks"):
        assert reaches(imports(module), "dit") == reaches(imports(module), "dit.design", "dit.errors")
    for module in ("dit.model.transformer", "dit.model.unet", "dit.model.unet_blocks"):
        assert not reaches(imports(module), "dit.design.flops", "dit.design.unet.flops")


@pytest.mark.parametrize("module", MODULES)
def test_pytorch_is_not_imported(module):
    assert not reaches(imports(module), "torch")


def test_modules_that_need_no_jax_do_not_import_it():
    names = [
        *(name for name in MODULES for room in WITHOUT_JAX if name == room or name.startswith(room + ".")),
        "dit.cli",
        "dit.cli.plan",
        "dit.cli.sweep",
        "dit.cli.worker",
        "dit.cli.status",
        "dit.cli.results",
        "dit.cli.sql",
        "dit.cli.compare",
        "dit.cli.import_wandb",
        "dit.cli.export_wandb",
        "dit.cli.figures",
        "dit.cli.fit",
        "dit.cli.forecast",
        "dit.cli.advise",
        "dit.cli.report",
    ]
    names += [name for name in MODULES if name.split(".")[0] in ("experiments", "analysis")]
    names += [name for name in MODULES if name.startswith("sweeps")]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'jax' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code, *names], check=True)


SCRIPTS = sorted(set(MODULES.values()) | set((ROOT / "tests").glob("*.py")) | set((ROOT / "tests").glob("*/test_*.py")))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_a_readers_head(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    text = MODULES[module].read_text()
    assert not text or ast.get_docstring(ast.parse(text))
