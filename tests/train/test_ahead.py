"""What is read off lowered and compiled steps; and real compilation for a TPU that is not there."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from dit.design.config import DATASETS, RunArguments, RunConfig, model_config
from dit.train.ahead import attention_products, describe, needed_bytes
from dit.train.step import build

HLO = """
  %all-reduce.1 = (f32[1,384]{1,0}, f32[1,1152]{1,0:T(1,128)S(1)}) all-reduce(%a, %b), replica_groups=[1,8]<=[8]
  %all-gather-start.2 = (bf16[4], bf16[32]) all-gather-start(%c), dimensions={0}
  %all-gather-done.2 = bf16[32] all-gather-done(%all-gather-start.2)
  %reduce-scatter.3 = f32[8] reduce-scatter(%d), dimensions={0}
  %reduce-scatter.4 = f32[8] reduce-scatter(%d), dimensions={0}
  %custom-call.5 = f32[8] custom-call(%e), custom_call_target="AllocateBuffer"
"""


def test_collectives_are_counted_once_each_with_their_asynchronous_forms():
    told = describe(HLO)
    assert told["collectives"] == {"all-reduce": 1, "all-gather": 1, "reduce-scatter": 2}
    assert told["custom_calls"] == {"AllocateBuffer": 1}
    assert told["host_callbacks"] == []


@pytest.mark.parametrize(
    "line",
    [
        '  %x = f32[] custom-call(%a), custom_call_target="xla_ffi_python_cpu_callback"',
        "  %x = (f32[], token[]) infeed(%t)",
        "  %x = token[] outfeed(%a, %t)",
        "  %s = (f32[8], u32[], token[]) send(%a, %t), channel_id=1, is_host_transfer=true",
    ],
)
def test_a_call_to_the_host_is_seen(line):
    assert describe(HLO + line)["host_callbacks"]


def test_a_real_callback_is_seen_and_a_step_without_has_none():
    def talks(x):
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct((), jnp.float32), x)

    text = jax.jit(talks).lower(jnp.float32(1)).compile().as_text()
    assert describe(text)["host_callbacks"]
    assert not describe(jax.jit(lambda x: x * 2).lower(jnp.float32(1)).compile().as_text())["host_callbacks"]


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G.",
            17.5 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (186.35G) exceeds "
            "available HBM (15.75G).",
            int(186.35 * 2**30),
        ),
        ("INVALID_ARGUMENT: no such topology", None),
    ],
)
def test_a_refusal_says_what_would_be_needed(message, needed):
    assert needed_bytes(message) == needed


def test_attention_is_two_products_forward_and_four_backward_with_softmax_in_float32():
    data = DATASETS["digits"]
    run = RunConfig(model_config("adaln_zero", "S", 2, data, ladder="nano"), data, 10, 4, precision="bfloat16")
    images = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((4,), jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        program = build(run, None, RunArguments(remat="none"))
        text = program.step.lower(program.abstract(), images, labels).as_text()
    told = attention_products(text, run.model.num_heads)
    assert told == {
        "products": {"bf16": 4, "f32": 2},
        "softmax": {"f32": 1},
    }  # the gradient of float32 logits comes twice


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu-plan]'"
)
def test_a_step_is_compiled_for_eight_chips_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.py").write_text(
        '"""Does it compile?"""\n'
        "import dataclasses\n"
        "from dit.design.config import DATASETS, RunConfig, model_config\n"
        "D = DATASETS['imagenet256']\n"
        "def runs():\n"
        "    model = dataclasses.replace(model_config('adaln_zero', 'S', 8, D), depth=2, size='custom', ladder='custom')\n"
        "    return [RunConfig(model, D, 10, precision='bfloat16')]\n"
    )
    command = [sys.executable, "-m", "dit", "plan", "small.py", "--hardware", "v5e-8", "--memory", "compiled", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    (kept,) = (json.loads(path.read_text()) for path in (tmp_path / "cache" / "plans").glob("*.json"))
    report = kept["report"]
    assert report["device"] == "TPU v5 lite"
    assert report["host_callbacks"] == []
    assert set(report["collectives"]) == {"all-reduce"}
    assert report["attention"]["softmax"] == {"f32": 1}
    assert cell["memory_from"] == "compiled"
    assert cell["memory_gib"] == report["needed"] / 2**30
    assert report["bytes"]["arguments"] > 16 * cell["params"]
    assert 0.7 < json.loads(_analytic(command, tmp_path))["cells"][0]["memory_gib"] / cell["memory_gib"] < 1.5


def _analytic(command, folder):
    words = [word if word != "compiled" else "analytic" for word in command]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
