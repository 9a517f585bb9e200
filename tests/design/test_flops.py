"""The closed-form count against independent ones: the model's jaxpr, its parameter shapes, XLA's analysis, and fvcore on a PyTorch twin.

The published table is in test_published.py.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx

from dit.design import flops
from dit.design.config import BLOCKS, DATASETS, LADDERS, SIZES, RunConfig, model_config
from dit.model.compute import Compute
from dit.model.transformer import DiT

IMAGENET = DATASETS["imagenet256"]
CELLS = [
    *(model_config(*cell, IMAGENET) for cell in itertools.product(BLOCKS, SIZES, (2, 4, 8))),
    *(model_config(block, "XL", 2, DATASETS["imagenet512"]) for block in BLOCKS),
    *(model_config(*cell, DATASETS["digits"], "nano") for cell in itertools.product(BLOCKS, ("S", "XL"), (1, 4))),
    *(
        model_config(block, "S", 2, IMAGENET, learn_sigma=False, class_dropout_prob=0.0, mlp_ratio=3.0)
        for block in BLOCKS
    ),
    *(model_config(block, "S", 4, DATASETS["digits"], "nano", qk_norm=True) for block in BLOCKS),
]


def name(model):
    return (
        f"{model.ladder}-{model.block}-{model.size}/{model.patch_size}@{model.input_size}{'-qk_norm' * model.qk_norm}"
    )


def abstract(model, unroll=1):
    """A function of the model's parameters and inputs, and shapes for them (batch 1); nothing is allocated."""
    graph, params = nnx.split(nnx.eval_shape(lambda: DiT(model, rngs=nnx.Rngs(0), compute=Compute(unroll=unroll))))
    image = jax.ShapeDtypeStruct((1, model.input_size, model.input_size, model.in_channels), np.float32)
    t, y = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
    return (lambda params, x, t, y: nnx.merge(graph, params)(x, t, y)), (params, image, t, y)


def walk(jaxpr):
    """Multiply-adds of every matrix product in a jaxpr, those of a scanned body as often as it runs."""
    total = 0
    for eqn in jaxpr.eqns:
        assert not eqn.primitive.name.startswith(("conv", "while", "cond")), eqn.primitive
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += depth * math.prod(eqn.outvars[0].aval.shape)
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(walk(part) for part in inner if hasattr(part, "eqns"))
    return total


@pytest.mark.parametrize("model", CELLS, ids=name)
def test_count_and_parameters_are_exactly_the_models(model):
    function, arguments = abstract(model)
    assert walk(jax.make_jaxpr(function)(*arguments).jaxpr) == flops.macs(model)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(arguments[0])) == flops.params(model)


def test_the_grid_is_all_48_cells():
    assert len({name(model) for model in CELLS if model.ladder == "dit" and model.input_size == 32}) == 48


def test_walking_counts_a_scan_as_often_as_it_runs():
    def function(a, b):
        scanned = jax.lax.scan(lambda carry, _: (jax.nn.relu(carry @ a), None), b, None, length=5)[0]
        return jax.checkpoint(lambda x: x @ a)(scanned)

    a, b = np.ones((3, 3), np.float32), np.ones((7, 3), np.float32)
    assert walk(jax.make_jaxpr(function)(a, b).jaxpr) == (5 + 1) * 7 * 3 * 3


def xla_macs(model, unroll):
    function, arguments = abstract(model, unroll)
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"] / 2


@pytest.mark.parametrize(
    "cell", [("adaln_zero", "B", 2), ("cross_attention", "B", 2), ("in_context", "L", 2), ("adaln_zero", "XL", 2)]
)
def test_xla_counts_the_unrolled_model_within_half_a_percent_and_a_scanned_body_once(cell):
    model = model_config(*cell, IMAGENET)
    assert 0 <= xla_macs(model, unroll=model.depth) / flops.macs(model) - 1 < 0.005
    assert xla_macs(model, unroll=1) < 1.2 * flops.macs(model) / model.depth


def test_the_papers_differences_between_blocks_are_in_the_count():
    counts = {block: flops.components(model_config(block, "XL", 2, IMAGENET)) for block in BLOCKS}
    d, depth, t, condition = 1152, 28, 256, 2
    total = {block: sum(part.macs for part in parts.values()) for block, parts in counts.items()}
    assert total["adaln_zero"] - total["adaln"] == depth * 2 * d * d
    cross = counts["cross_attention"]["cross_attention"]
    assert cross.macs == depth * ((2 * t + 2 * condition) * d * d + 2 * t * condition * d)
    assert cross.params == depth * 4 * (d * d + d)
    assert total["in_context"] - (total["cross_attention"] - cross.macs) == depth * (
        12 * condition * d * d + 2 * ((t + condition) ** 2 - t**2) * d
    )
    for block, parts in counts.items():
        assert ("cross_attention" in parts) == (block == "cross_attention")
        assert ("modulation" in parts) == block.startswith("adaln")


def test_conditioning_is_counted_once_an_image_and_position_embedding_is_no_parameter():
    small, large = (model_config("adaln_zero", "XL", 2, DATASETS[data]) for data in ("imagenet256", "imagenet512"))
    assert flops.components(small)["modulation"] == flops.components(large)["modulation"]
    assert flops.params(small) == flops.params(large) == 674_834_720


def test_paper_mode_adds_two_operations_per_token_and_channel_of_each_block():
    for block, tokens in (("adaln_zero", 256), ("in_context", 258), ("cross_attention", 256), ("adaln", 256)):
        model = model_config(block, "L", 2, IMAGENET)
        extra = 1e9 * (flops.gflops(model, paper=True) - flops.gflops(model))
        assert extra == pytest.approx(2 * 24 * tokens * 1024, abs=100)
        assert flops.gflops(model) == flops.macs(model) / 1e9


def test_training_and_sampling_compute():
    model = model_config("adaln_zero", "XL", 2, IMAGENET)
    run = RunConfig(model, IMAGENET, steps=1, batch_size=256)
    assert flops.train_gflops(run, 400_000) == pytest.approx(3.645e10, rel=1e-3)
    assert flops.train_gflops(run, 0) == 0
    halved = dataclasses.replace(run, batch_size=128)
    assert flops.train_gflops(halved, 800_000) == flops.train_gflops(run, 400_000)
    assert flops.sampling_gflops(model, 128) == pytest.approx(15.19e3, rel=1e-3)
    assert flops.sampling_gflops(model, 250, cfg_scale=1.5) == 2 * flops.sampling_gflops(model, 250)


def fvcore_macs(model, fused, ignored=()):
    """fvcore's count of the twin of an adaLN-Zero model on the meta device; warnings of old fvcore on new torch are its own."""
    torch, fvcore = pytest.importorskip("torch"), pytest.importorskip("fvcore.nn")
    from torch_twin import TorchDiT

    row, size = LADDERS[model.ladder][model.size], model.input_size
    with torch.device("meta"):
        twin = TorchDiT(row.depth, row.hidden_size, row.num_heads, model.patch_size, size, fused).eval()
        inputs = torch.zeros(1, 4, size, size), torch.zeros(1, 256), torch.zeros(1, dtype=torch.long)
    assert sum(parameter.numel() for parameter in twin.parameters()) == flops.params(model)
    count = fvcore.FlopCountAnalysis(twin, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    for operation in ignored:
        count.set_op_handle(operation, lambda inputs, outputs: 0)
    return count.total()


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", [("S", 2), ("S", 8), ("B", 4), ("XL", 2)], ids=lambda cell: "{}/{}".format(*cell))
def test_fvcore_counts_the_same_matrix_products_and_four_operations_per_normalised_element(cell):
    model = model_config("adaln_zero", *cell, IMAGENET)
    assert fvcore_macs(model, fused=False, ignored=["aten::layer_norm"]) == flops.macs(model)
    norms = 4 * (2 * model.depth + 1) * model.tokens * model.hidden_size
    assert fvcore_macs(model, fused=False) == flops.macs(model) + norms


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_fvcore_counts_fused_attention_as_zero():
    model = model_config("adaln_zero", "XL", 2, IMAGENET)
    fused = fvcore_macs(model, fused=True)
    assert fvcore_macs(model, fused=False) - fused == flops.components(model)["attention_products"].macs
    assert fused / 1e9 == pytest.approx(114.46, abs=0.005)
