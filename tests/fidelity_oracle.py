"""torch-fidelity as an oracle where PyTorch is installed. It imports torchvision, of which no metric here needs anything: without it
an empty stand-in takes its place."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

_EMPTY = ("", ".transforms", ".transforms.functional", ".datasets", ".models")


def _stand_in(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []

    def missing(attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    module.__getattr__ = missing  # type: ignore[method-assign]
    return module


def load(module: str) -> Any:
    """A module of torch-fidelity, such as `metric_kid`; skips the test where PyTorch or torch-fidelity is not installed."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for suffix in _EMPTY:
            stub = sys.modules[f"torchvision{suffix}"] = _stand_in(f"torchvision{suffix}")
            parent, _, child = stub.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, stub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, not of this code
        return importlib.import_module(f"torch_fidelity.{module}")
