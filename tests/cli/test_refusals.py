"""What a run cannot be given: one line each, before anything is compiled."""

import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest

from dit.design.config import DATASETS, Evaluation, RunArguments, RunConfig, model_config
from dit.model.compute import require_precision
from dit.runs import run as product
from dit.runs.run import execute
from dit.store.study import RunStore
from dit.train import step as train

DATA = DATASETS["digits"]
SCORE = Evaluation(12, "digits", num_samples=32, sampling_steps=4)
RUN = RunConfig(model_config("adaln_zero", "S", 4, DATA, ladder="nano"), DATA, 30, 8, evaluations=(SCORE,))


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        ({}, {"accumulate": 3}, "batch_size 8 .* in 3 accumulated parts: expected a multiple of 3"),
        ({}, {"mesh": "data=4,fsdp=2"}, "a mesh of data=4,fsdp=2,tensor=1 needs 8 devices, there are 1"),
        ({"precision": "bfloat16"}, {}, r"bfloat16 on Tesla V100, which has none \(compute capability 7.0"),
        ({"evaluations": (replace(SCORE, precision="bfloat16"),)}, {}, "bfloat16 on Tesla V100, which has none"),
        ({}, {}, "cannot write checkpoints in .*/checkpoints .*: make it a folder that can be written"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_anything_is_compiled(
    tmp_path, monkeypatch, change, arguments, reason
):
    run, compiled = replace(RUN, **change), Mock()
    volta = SimpleNamespace(platform="gpu", device_kind="Tesla V100", compute_capability="7.0")
    for module in (product, train):
        monkeypatch.setattr(module, "require_precision", lambda precision, _: require_precision(precision, volta))
    if "checkpoints" in reason:
        place = RunStore(tmp_path, run).path
        place.mkdir(parents=True)
        (place / "checkpoints").write_text("a file where the folder should be")
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        assert execute(tmp_path, "mine", run, RunArguments(**arguments), lambda event: None) == "failed"
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    found = RunStore(tmp_path, run).status()["reason"]
    assert re.search(reason, found) and "\n" not in found
    assert not [call for call in compiled.call_args_list if "backend_compile" in call.args[0]]
