"""U-Nets counted: the published models by part, Table 6, ladders against DiT's, a walk of the traced network, and bad input."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from dit.config import DATASETS, SIZES, RunConfig, model_config
from dit.design import flops
from dit.design.config import from_json, to_json
from dit.design.unet import UNetConfig
from dit.design.unet import flops as unet_flops
from dit.design.unet.models import CASCADES, LADDERS, PUBLISHED, TABLE_6, paper_gflops, published, unet_config
from dit.errors import UserError
from dit.model.unet import UNet

COUNTED = {
    "ADM-64": (295_904_454, 109.6780, 109.713),
    "ADM-128": (421_529_606, 306.9279, 307.032),
    "ADM-256": (553_838_086, 1119.8328, 1120.233),
    "ADM-512": (558_997_638, 1982.3348, 1983.33),
    "ADM-upsampler-256": (311_795_910, 631.6424, 631.94),
    "ADM-upsampler-512": (308_835_270, 2504.7850, 2505.98),
    "LDM-4": (400_920_579, 104.2272, 104.26),
    "LDM-8": (394_984_196, 57.0386, 57.06),
}
"""Parameters, multiply-adds and rule H1 (G), counted on the original PyTorch modules."""
BY_PART = {
    "ADM-64": {
        "res_convolutions": (91.8568, 224_979_840),
        "embedding_projections": (0.0274, 27_462_528),
        "skip_projections": (3.6994, 9_483_456),
        "attention_projections": (7.8140, 32_344_320),
        "attention_products": (6.2160, 0),
        "timestep_embedding": (0.0007, 738_816),
        "label_embedding": (0, 768_000),
        "input": (0.0212, 5_376),
        "output": (0.0425, 10_374),
        "norms": (0, 111_744),
    },
    "ADM-128": {
        "res_convolutions": (279.1142, 321_495_040),
        "embedding_projections": (0.0419, 41_984_000),
        "skip_projections": (11.5092, 13_314_560),
        "attention_projections": (9.9992, 42_255_360),
        "attention_products": (5.9224, 0),
        "timestep_embedding": (0.0013, 1_312_768),
        "label_embedding": (0, 1_024_000),
        "input": (0.1132, 7_168),
        "output": (0.2265, 13_830),
        "norms": (0, 122_880),
    },
}


@pytest.mark.parametrize("name", COUNTED)
def test_published_models_are_counted_exactly(name):
    params, gflops, h1 = COUNTED[name]
    model = PUBLISHED[name]
    assert unet_flops.published_params(model) == params
    assert round(flops.gflops(model), 4) == gflops
    assert flops.gflops(model, paper=True) == pytest.approx(h1, abs=0.006)
    assert flops.macs(model) + unet_flops.normalised(model) == pytest.approx(1e9 * flops.gflops(model, paper=True))


@pytest.mark.parametrize("name", BY_PART)
def test_each_part_is_the_originals(name):
    parts = unet_flops.components(PUBLISHED[name])
    assert {part: (round(count.macs / 1e9, 4), count.params) for part, count in parts.items()} == BY_PART[name]


def test_rule_h1_gives_all_figures_of_table_6_and_multiply_adds_alone_miss_four():
    models = {name: [PUBLISHED[one] for one in CASCADES.get(name, (name,))] for name in TABLE_6}
    cells = [*TABLE_6, "ADM-128"]  # 307 is printed twice
    assert len(cells) == 11
    assert all(round(paper_gflops(models[name])) == TABLE_6[name] for name in cells)
    plain = {name: round(sum(flops.gflops(model) for model in models[name])) for name in TABLE_6}
    assert sum(plain[name] != TABLE_6[name] for name in cells) == 4


def test_rule_h1_of_dit_is_paper_mode_and_the_last_norm():
    model = model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"])
    entering = (2 * model.depth + 1) * model.tokens * model.hidden_size
    assert flops.macs(model) + entering == pytest.approx(
        1e9 * flops.gflops(model, paper=True) + model.tokens * model.hidden_size
    )


@pytest.mark.parametrize(
    ("ladder", "others", "data", "within"),
    [
        ("unet", "dit", "imagenet256", 0.03),
        ("unet-nano-8", "nano", "digits", 0.03),
        ("unet-nano-32", "nano", "mnist", 0.03),
    ],
)
def test_ladders_match_dit_at_a_patch_of_two(ladder, others, data, within):
    for size in SIZES:
        ours = unet_config(size, DATASETS[data], ladder)
        theirs = model_config("adaln_zero", size, 2, DATASETS[data], others)
        assert flops.gflops(ours) == pytest.approx(flops.gflops(theirs), rel=within), size
        assert ours.out_channels == theirs.out_channels
        assert all(channels % ours.groups == 0 for channels in ours.channels)


def test_latent_diffusions_shape_at_a_width_of_160_has_the_gflops_of_b_2():
    assert flops.gflops(unet_config("B", DATASETS["imagenet256"])) == pytest.approx(23.014, abs=5e-4)


def walk(jaxpr):
    """Multiply-adds of every product and convolution in a jaxpr."""
    total = 0
    for eqn in jaxpr.eqns:
        name, out = eqn.primitive.name, math.prod(eqn.outvars[0].aval.shape)
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += out * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            total += out * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        total += sum(walk(part) for part in inner if hasattr(part, "eqns"))
    return total


SMALL = UNetConfig("adm", 32, (32, 64), 1, (8,), 16, 3, 7, head_channels=16, low_res_size=4)


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        dataclasses.replace(SMALL, kind="ldm", low_res_size=0, context=24, class_dropout_prob=0.0),
        unet_config("S", DATASETS["digits"], "unet-nano-8"),
        pytest.param(PUBLISHED["LDM-8"], marks=pytest.mark.long),
        pytest.param(PUBLISHED["ADM-64"], marks=pytest.mark.long),
    ],
    ids=lambda model: f"{model.kind}-{model.size}",
)
def test_the_count_is_a_walk_of_the_traced_network(model):
    graph, params = nnx.split(nnx.eval_shape(lambda: UNet(model, rngs=nnx.Rngs(0))))
    shapes = [(1, model.input_size, model.input_size, model.in_channels)]
    shapes += [(1, model.low_res_size, model.low_res_size, model.in_channels)] * bool(model.low_res_size)
    x, *low_res = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    t, y = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
    jaxpr = jax.make_jaxpr(lambda params, *inputs: nnx.merge(graph, params)(*inputs))(params, x, t, y, *low_res).jaxpr
    resized = 0
    if low_res:  # bilinear enlargement is a product with constants, which no count has
        s, low, c = model.input_size, model.low_res_size, model.in_channels
        resized = low * s * low * c + s * s * low * c
    assert walk(jaxpr) - resized == flops.macs(model)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == flops.params(model)


def test_a_run_of_a_u_net_is_written_and_read_back_and_has_its_own_name():
    data = DATASETS["digits"]
    run = RunConfig(unet_config("S", data, "unet-nano-8"), data, steps=3)
    assert from_json(json.loads(json.dumps(to_json(run)))) == run
    assert run.run.startswith("unet-S-0-s0-")
    assert run.hash != RunConfig(model_config("adaln_zero", "S", 2, data, "nano"), data, steps=3).hash


GOOD = {
    "kind": "ldm",
    "width": 32,
    "channels": (32, 64),
    "res_blocks": 1,
    "attention": (8,),
    "input_size": 16,
    "in_channels": 3,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (32, 72)}, "72 channels do not divide into 32 groups of a GroupNorm: expected a multiple of 32"),
        ({"input_size": 15}, "an input of 15 px does not halve evenly over 2 levels: expected a multiple of 2"),
        ({"channels": (32, 32, 32, 32), "input_size": 20}, "20 px does not halve evenly over 4 levels"),
        ({"attention": (8, 4)}, "attention at 4 px: this U-Net has no such resolution, expected some of 16, 8"),
        ({"head_channels": 48}, "attention over 64 channels does not divide into 48 channels a head"),
        ({"num_heads": 3}, "attention over 64 channels does not divide into 3 heads"),
        ({"head_channels": 0}, "num_heads and head_channels are both 0"),
        ({"width": 31}, "width is 31: expected an even number"),
        ({"channels": ()}, "channels is empty"),
        ({"channels": (32, 0)}, "channels is (32, 0): expected positive whole numbers"),
    ],
)
def test_bad_configurations_are_one_line(change, message):
    UNetConfig(**GOOD)
    with pytest.raises(UserError) as error:
        UNetConfig(**(GOOD | change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_not_published_and_what_cannot_be_trained_is_refused():
    assert [model.size for model in published("adm-u")] == ["ADM-64", "ADM-upsampler-256"]
    assert [model.size for model in published("adm", 512)] == ["ADM-512"]
    with pytest.raises(UserError, match="no ADM for images of 300 px was published: expected one of 64, 128, 256, 512"):
        published("adm", 300)
    with pytest.raises(UserError, match="unknown family of U-Nets 'edm'"):
        published("edm")
    with pytest.raises(UserError, match="does not halve evenly over 3 levels"):
        unet_config("S", dataclasses.replace(DATASETS["imagenet256"], input_size=30))
    upsampler = PUBLISHED["ADM-upsampler-256"]
    data = dataclasses.replace(DATASETS["imagenet256"], input_size=256, in_channels=3)
    with pytest.raises(UserError, match="an upsampler needs images of low resolution"):
        RunConfig(upsampler, data, steps=1)
    assert set(LADDERS) == {"unet", "unet-nano-8", "unet-nano-32"}
