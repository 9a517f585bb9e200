"""Tests run stricter than the product: shapes checked on every call, no implicit dtype or rank promotion, warnings are errors."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

install_import_hook(["dit"], "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of the test session's own, shared by its worker processes' children."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("DIT_CACHE")
    os.environ["DIT_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["DIT_CACHE"]
    else:
        os.environ["DIT_CACHE"] = before


@pytest.fixture(autouse=True)
def compiler_options():
    """What a worker in this process tells the compiler is not for the next test's processes."""
    before = os.environ.get("XLA_FLAGS", "")
    yield
    os.environ["XLA_FLAGS"] = before


@pytest.fixture
def golden():
    """Load one of the reference implementations' outputs by name."""

    def load(name: str):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load
