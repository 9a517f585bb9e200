"""Reports of compiled steps: kept under all that they depend on, asked for once, and refused in one line where they cannot be had."""

import dataclasses
import subprocess

import pytest
from synthetic_study import cells

from dit.design.config import from_json
from dit.errors import UserError
from sweeps import compiled
from sweeps.hardware import hardware

RUN = cells(blocks=("adaln_zero",), sizes=("S",), patches=(4,), sampling=())[0]
V5E = hardware("v5e-8")
REPORT = {"remat": "none", "auto": "none", "needed": 1000, "fits": True}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Requests made of a compiler that answers at once, with a cache of its own."""
    monkeypatch.setenv("DIT_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "require_compiler", lambda hardware: None)
    requests = []

    def ask(request, name, module):
        requests.append(request)
        return REPORT | {"needed": len(requests)}

    monkeypatch.setattr(compiled, "_ask", ask)
    return requests


def test_what_was_compiled_is_kept(asked):
    assert compiled.kept(RUN, V5E, "", "auto") is None
    first = compiled.compiled(RUN, V5E, "", "auto")
    assert compiled.compiled(RUN, V5E, "", "auto") == compiled.kept(RUN, V5E, "", "auto") == first
    assert len(asked) == 1


def test_what_changes_nothing_of_the_step_is_not_compiled_again(asked):
    compiled.compiled(RUN, V5E, "", "auto")
    renamed = dataclasses.replace(RUN.model, size="custom", ladder="custom")
    for change in ({"seed": 5}, {"steps": 9, "evaluations": ()}, {"model": renamed}):
        compiled.compiled(dataclasses.replace(RUN, **change), V5E, "", "auto")
    assert len(asked) == 1


def test_everything_else_is(asked, monkeypatch):
    compiled.compiled(RUN, V5E, "", "auto")
    deeper = dataclasses.replace(RUN.model, depth=3)
    for change in ({"batch_size": 16}, {"precision": "bfloat16"}, {"model": deeper}):
        compiled.compiled(dataclasses.replace(RUN, **change), V5E, "", "auto")
    compiled.compiled(RUN, V5E, "fsdp=8", "auto")
    compiled.compiled(RUN, V5E, "", "full")
    compiled.compiled(RUN, hardware("v5e-16"), "", "auto")
    monkeypatch.setattr(compiled, "versions", lambda: {"jax": "99"})
    compiled.compiled(RUN, V5E, "", "auto")
    monkeypatch.setattr(compiled, "source", lambda: "another step")
    compiled.compiled(RUN, V5E, "", "auto")
    assert len(asked) == 9


def test_the_request_is_a_run_of_the_same_step(asked):
    compiled.compiled(dataclasses.replace(RUN, precision="bfloat16"), V5E, "fsdp=8", "dots")
    (request,) = asked
    run = from_json(request["run"])
    assert (run.batch_size, run.precision, run.model.depth) == (RUN.batch_size, "bfloat16", RUN.model.depth)
    assert (request["topology"], request["mesh"], request["remat"]) == ("v5e:2x4", "fsdp=8", "dots")
    assert request["limit"] == int(15.75 * 2**30)


def test_a_gpus_step_cannot_be_compiled_without_it():
    with pytest.raises(UserError, match="a GPU's compiler needs the GPU; use --memory analytic"):
        compiled.compiled(RUN, hardware("h100x8"), "", "auto")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'dit-scaling\[tpu-plan\]'"):
        compiled.compiled(RUN, V5E, "", "auto")
    compiled.require_compiler(hardware("cpu"))


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (1, "Traceback\n  File\nValueError: no such\n  topology\n", "the step of .* did not compile: topology$"),
        (1, "", "did not compile: no message"),
        (-9, "", "ended by signal 9; the compiler of a large model needs some 8 GB"),
    ],
)
def test_a_compiler_that_fails_is_one_line_and_nothing_is_kept(tmp_path, monkeypatch, code, stderr, message):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "require_compiler", lambda hardware: None)
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: subprocess.CompletedProcess(given, code, "", stderr))
    with pytest.raises(UserError, match=message) as error:
        compiled.compiled(RUN, V5E, "", "auto")
    assert "\n" not in str(error.value)
    assert compiled.kept(RUN, V5E, "", "auto") is None
