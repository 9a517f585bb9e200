"""A U-Net through the ordinary run: trained, stopped, resumed bit for bit, sampled with guidance and scored."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from dit.config import DATASETS, Evaluation, OptimConfig, RunArguments, RunConfig, model_config
from dit.design import flops
from dit.design.rows import planned_row, recorded_row, varied
from dit.design.topology import AXES, MeshShape
from dit.design.unet import flops as unet_flops
from dit.design.unet.models import unet_config
from dit.errors import UserError
from dit.model import memory
from dit.model.mesh import require_split, state_sharding
from dit.model.unet import UNet
from dit.runs import run as product
from dit.runs.run import execute
from dit.store.study import RunStore, read_metrics
from dit.train.restore import open_checkpoint
from sweeps.memory import activation_bytes, estimate

DATA = DATASETS["digits"]
EVALUATION = Evaluation(20, "digits", num_samples=32, sampling_steps=2, cfg_scale=1.5)
RUN = RunConfig(
    unet_config("S", DATA, "unet-nano-8"),
    DATA,
    steps=20,
    batch_size=8,
    optim=OptimConfig(learning_rate=3e-3, ema_decay=0.9),
    evaluations=(EVALUATION,),
)
ARGUMENTS = RunArguments(log_every=10, checkpoint_every=10, sample_batch_size=32)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """One program for every attempt: compiling is most of a tiny run's time."""
    build = functools.cache(product.build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "build", lambda run, *_: build(dataclasses.replace(run, evaluations=(), steps=1)))
        yield


def carried_out(folder, *runs):
    for run in runs:
        assert execute(folder, "study", run, ARGUMENTS, lambda event: None) == "done"
    place = RunStore(folder, runs[-1])
    return open_checkpoint(place.path), place


@pytest.mark.long
def test_a_u_net_trains_resumes_bit_for_bit_samples_and_scores(tmp_path):
    whole, place = carried_out(tmp_path / "whole", RUN)
    unscored = dataclasses.replace(RUN, evaluations=())
    resumed, _ = carried_out(tmp_path / "resumed", dataclasses.replace(unscored, steps=10), unscored)
    assert whole.step == resumed.step == 20
    assert whole.model == RUN.model
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["step"] for row in read_metrics(place.path)] == [10, 20]
    (scored,) = [recorded_row(RUN, "one", value) for value in place.evaluations()]
    assert np.isfinite(scored["fd_digits"])
    assert (scored["block"], scored["size"], scored["patch_size"]) == ("unet", "S", 0)
    assert scored["sampling_gflops"] == flops.sampling_gflops(RUN.model, 2, 1.5)


def test_every_parameter_has_a_place_on_a_mesh_and_tensor_is_refused():
    sizes = MeshShape(data=2, fsdp=2)
    split = 0
    for model in (RUN.model, dataclasses.replace(RUN.model, kind="adm", attention=(8, 4))):
        params = nnx.split(nnx.eval_shape(lambda: UNet(model, rngs=nnx.Rngs(0))))[1]  # noqa: B023
        places = state_sharding(params, AbstractMesh(sizes.sizes, AXES))
        split += sum("fsdp" in place.spec for place in jax.tree.leaves(places))
    assert split > 40
    with pytest.raises(UserError, match="a U-Net is not split over tensor=2: spread it over data and fsdp"):
        require_split(RUN.model, MeshShape(tensor=2))
    assert estimate(RUN, MeshShape(tensor=2), "auto", 2**30).why_not == "a U-Net is not split over tensor=2"


ON_A_MESH = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from test_unet_run import RUN
from dit.model.mesh import make_mesh
from dit.train.step import build
images = np.random.default_rng(0).standard_normal((8, 8, 8, 1)).astype(np.float32)
states = []
for mesh in (None, make_mesh("data=2,fsdp=2", jax.devices()[:4])):
    program = build(RUN, mesh)
    state, metrics = program.step(program.init(), *program.put((images, np.arange(8, dtype=np.int32))))
    states.append((state.params, metrics.loss, metrics.grad_norm))
one, other = jax.tree.map(np.asarray, states)
np.testing.assert_allclose(one[1:], other[1:], rtol=1e-5)
for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
"""


@pytest.mark.long
def test_a_u_net_over_data_and_fsdp_is_the_u_net_on_one_device():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", ON_A_MESH, here], env=environment, check=True)


@pytest.mark.parametrize("change", [{}, {"kind": "adm", "attention": (8, 4)}])
def test_the_estimate_of_memory_is_near_what_the_traced_step_keeps(change):
    run = dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, **change))
    for remat in ("none", "dots"):
        traced = memory.activation_bytes(run.model, "float32", remat)
        again = 0 if remat == "none" else unet_flops.recomputed(run.model)
        assert 4 * (unet_flops.kept(run.model, remat) + again) == pytest.approx(traced, rel=0.25)
        assert activation_bytes(run, remat) == traced


def test_rows_and_variants_of_a_study_of_both_families():
    faster = dataclasses.replace(RUN, optim=dataclasses.replace(RUN.optim, learning_rate=1e-2))
    dit = dataclasses.replace(RUN, model=model_config("adaln_zero", "S", 2, DATA, "nano"))
    named = {run: row["variant"] for run, row in varied([RUN, faster, dit]).items()}
    assert (named[RUN.run], named[faster.run]) == ("learning_rate=0.003", "learning_rate=0.01")
    assert varied([RUN, dit]) == {}
    row = planned_row(RUN, "mine")
    assert (row["block"], row["size"], row["patch_size"], row["tokens"]) == ("unet", "S", 0, 64)
    assert row["params"] == flops.params(RUN.model)
