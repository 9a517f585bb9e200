"""Configurations: what a run's identity holds, JSON there and back, and errors that name the value."""

import dataclasses
import hashlib
import json

import jaxtyping
import numpy as np
import pytest

from dit.design import config
from dit.design.config import (
    DATASETS,
    DiffusionConfig,
    Evaluation,
    Guard,
    ModelConfig,
    OptimConfig,
    RunConfig,
    model_config,
)
from dit.design.guidance import autoguided_by
from dit.design.objectives import ObjectiveConfig
from dit.errors import UserError

EVALUATION = Evaluation(step=100, features="digits", num_samples=64, sampling_steps=16)
GUIDED = dataclasses.replace(EVALUATION, cfg_scale=1.5)


def a_run(**changes):
    model = model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano")
    return dataclasses.replace(RunConfig(model, DATASETS["digits"], steps=100, evaluations=(EVALUATION,)), **changes)


def leaves(value, path=()):
    if not isinstance(value, dict):
        return {path: value}
    return {found: leaf for name, part in value.items() for found, leaf in leaves(part, (*path, name)).items()}


def test_digest_is_sha256_of_canonical_json():
    expected = hashlib.sha256(b'{"a":[0.0001,null,true],"b":{"c":"x","d":1}}').hexdigest()
    assert config.digest({"b": {"d": 1, "c": "x"}, "a": [1e-4, None, True]}) == expected[:12]
    with pytest.raises(ValueError):
        config.digest(float("nan"))


def test_identity_holds_every_field_but_how_far_to_train_and_what_to_score():
    every = a_run(
        model=model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano", qk_norm=True),
        precision="bfloat16",
        guard=Guard(spike="skip"),
        objective=ObjectiveConfig("flow", shift=2.0),
        evaluations=(),
    )
    everything, identity = leaves(dataclasses.asdict(every)), leaves(every.identity)
    unset = {name for name, value in everything.items() if name[0] == "objective" and value in (None, "")}
    left_out = everything.keys() - identity.keys() - unset
    assert left_out == {("steps",), ("evaluations",), ("model", "block_source"), ("data", "source")}
    assert identity.items() <= everything.items()


def test_fields_younger_than_the_first_results_leave_their_identity_as_it_was():
    assert a_run().hash == "cab477eab728"
    assert not {"precision", "guard"} & a_run().identity.keys() and "qk_norm" not in a_run().identity["model"]
    assert EVALUATION.key == "e5a8855b5037"
    assert dataclasses.replace(EVALUATION, precision="bfloat16").key != EVALUATION.key


def test_identity_is_json():
    everything, identity = leaves(dataclasses.asdict(a_run())), leaves(a_run().identity)
    assert identity.items() <= everything.items()
    assert len(a_run().hash) == 12
    assert config.digest(json.loads(json.dumps(a_run().identity))) == a_run().hash


def test_longer_training_and_other_scores_are_the_same_run():
    other = a_run(steps=7_000, evaluations=())
    assert (other.hash, other.run) == (a_run().hash, a_run().run)


OTHER_RUNS = [
    a_run(seed=1),
    a_run(batch_size=64),
    a_run(model=model_config("adaln", "S", 2, DATASETS["digits"], "nano")),
    a_run(model=model_config("adaln_zero", "B", 2, DATASETS["digits"], "nano")),
    a_run(model=model_config("adaln_zero", "S", 4, DATASETS["digits"], "nano")),
    a_run(model=model_config("adaln_zero", "S", 2, DATASETS["digits"], "dit")),
    a_run(model=model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano", learn_sigma=False)),
    a_run(model=model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano", class_dropout_prob=0.0)),
    a_run(model=model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano", mlp_ratio=2.0)),
    a_run(data=dataclasses.replace(DATASETS["digits"], name="others")),
    a_run(diffusion=DiffusionConfig(timesteps=500)),
    a_run(optim=OptimConfig(learning_rate=1e-3)),
    a_run(optim=OptimConfig(ema_decay=0.99)),
    a_run(precision="bfloat16"),
    a_run(objective=ObjectiveConfig("flow"), evaluations=()),
    a_run(objective=ObjectiveConfig("flow", path="gvp"), evaluations=()),
    a_run(objective=ObjectiveConfig("flow", times="logit_normal"), evaluations=()),
    a_run(guard=Guard(nonfinite="skip")),
    a_run(guard=Guard(spike="skip")),
    a_run(guard=Guard(spike="skip", spike_factor=20.0)),
    a_run(model=model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano", qk_norm=True)),
]


def test_each_change_of_what_decides_the_result_is_another_run():
    hashes = [run.hash for run in (a_run(), *OTHER_RUNS)]
    assert len(set(hashes)) == len(hashes)
    assert len({run.run for run in (a_run(), *OTHER_RUNS)}) == len(hashes)


def test_run_name_is_readable_and_fit_for_a_folder():
    assert a_run(seed=3).run == f"adaln_zero-S-2-s3-{a_run(seed=3).hash}"
    strange = a_run(model=dataclasses.replace(a_run().model, size="../my size"))
    assert strange.run == f"adaln_zero-.._my_size-2-s0-{strange.hash}"


@pytest.mark.parametrize("run", [a_run(), *OTHER_RUNS])
def test_json_gives_the_run_back(run):
    assert config.from_json(json.loads(json.dumps(config.to_json(run)))) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(colour="red"), "colour"),
        (lambda value: value["model"].update(colour="red"), "colour"),
        (lambda value: value.pop("model"), "model"),
        (lambda value: value.pop("steps"), "steps"),
        (lambda value: value["evaluations"][0].pop("num_samples"), "num_samples"),
        (lambda value: value.update(optim=None), "not a run configuration of this version"),
    ],
)
def test_json_of_another_version_is_refused(change, message):
    value = json.loads(json.dumps(config.to_json(a_run())))
    change(value)
    with pytest.raises(UserError, match=message):
        config.from_json(value)


def test_defaults_are_the_papers():
    run = RunConfig(
        model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"]), DATASETS["imagenet256"], steps=400_000
    )
    model = run.model
    assert (model.depth, model.hidden_size, model.num_heads, model.mlp_hidden_size) == (28, 1152, 16, 4608)
    assert (model.tokens, model.out_channels, model.class_dropout_prob) == (256, 8, 0.1)
    assert dataclasses.asdict(run.diffusion) == {"timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2}
    assert (run.batch_size, run.optim.learning_rate, run.optim.weight_decay, run.optim.ema_decay) == (
        256,
        1e-4,
        0,
        0.9999,
    )
    assert (run.optim.b1, run.optim.b2, run.optim.eps) == (0.9, 0.999, 1e-8)
    shapes = {size: (row.depth, row.hidden_size, row.num_heads) for size, row in config.LADDERS["dit"].items()}
    assert shapes == {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def test_nano_ladder_grows_in_the_papers_order():
    costs = [row.depth * row.hidden_size**2 for row in config.LADDERS["nano"].values()]
    assert list(config.LADDERS["nano"]) == list(config.LADDERS["dit"]) == list(config.SIZES)
    assert costs == sorted(set(costs))


def test_metric_is_fid_for_inception_alone_and_the_protocols_key_has_no_step():
    assert EVALUATION.metric == "fd_digits"
    assert dataclasses.replace(EVALUATION, features="inception").metric == "fid"
    assert dataclasses.replace(EVALUATION, step=7).key == EVALUATION.key
    changes = [
        {"features": "mnist"}, {"num_samples": 65}, {"sampling_steps": 17}, {"sampler": "ddim"}, {"cfg_scale": 1.5},
        {"cfg_channels": None}, {"ema": False}, {"decoder": "ft-mse"}, {"sample_seed": 1}, {"precision": "bfloat16"},
        {"sampler": "heun", "sampler_source": "0123"}, {"sampler": "edm", "sampler_options": (("churn", 1.0),)},
        {"cfg_scale": 1.5, "cfg_interval": (0.1, 1.0)}, {"cfg_scale": 1.5, "autoguidance": autoguided_by(a_run())},
    ]  # fmt: skip
    assert {name for change in changes for name in change} == {f.name for f in dataclasses.fields(Evaluation)} - {
        "step",
        "metrics",
    }
    assert dataclasses.replace(EVALUATION, metrics=("is", "kid")).key == EVALUATION.key
    keys = {dataclasses.replace(EVALUATION, **change).key for change in changes} | {EVALUATION.key}
    assert len(keys) == len(changes) + 1


def a_model(**changes):
    return ModelConfig(**{"block": "adaln", "patch_size": 2, "depth": 1, "hidden_size": 24, "num_heads": 2} | changes)


def a_cell(block="adaln", size="S", patch_size=2, data="digits", ladder="dit", **changes):
    return model_config(block, size, patch_size, DATASETS[data], ladder, **changes)


@pytest.fixture
def unchecked():
    """The product's own checks alone: annotations are not executed where users run it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: a_cell(block="adaln_one"), ["block 'adaln_one'", "in_context, cross_attention, adaln, adaln_zero"]),
        (lambda: a_cell(size="M"), ["size 'M'", "S, B, L, XL"]),
        (lambda: a_cell(ladder="giant"), ["ladder 'giant'", "dit, nano"]),
        (lambda: a_cell(patch_size=3), ["patch_size 3", "8", "[1, 2, 4, 8]"]),
        (lambda: a_cell(patch_size=16), ["patch_size 16", "8"]),
        (lambda: a_cell(patch_size=0), ["patch_size is 0"]),
        (lambda: a_model(depth=-1), ["depth is -1"]),
        (lambda: a_model(depth=True), ["depth is True"]),
        (lambda: a_model(num_heads=1.0), ["num_heads is 1.0"]),
        (lambda: a_model(num_classes=0), ["num_classes is 0"]),
        (lambda: a_model(in_channels=0), ["in_channels is 0"]),
        (lambda: a_model(num_heads=5), ["num_heads 5", "hidden_size 24"]),
        (lambda: a_model(hidden_size=26), ["hidden_size 26", "multiple of 4"]),
        (lambda: a_model(class_dropout_prob=1.0), ["class_dropout_prob is 1.0", "below 1"]),
        (lambda: a_model(class_dropout_prob=-0.1), ["class_dropout_prob is -0.1", "0 or more"]),
        (lambda: a_run(steps=99), ["step 100", "99"]),
        (lambda: a_run(steps=0, evaluations=()), ["steps is 0"]),
        (lambda: a_run(batch_size=0), ["batch_size is 0"]),
        (lambda: a_run(data=DATASETS["mnist"]), ["(8, 1, 10)", "'mnist'", "(32, 1, 10)"]),
        (lambda: dataclasses.replace(EVALUATION, sampler="hein"), ["sampler 'hein'", "ddpm, ddim"]),
        (lambda: dataclasses.replace(EVALUATION, num_samples=0), ["num_samples is 0"]),
        (lambda: dataclasses.replace(EVALUATION, sampling_steps=0), ["sampling_steps is 0"]),
        (lambda: dataclasses.replace(EVALUATION, step=0), ["step is 0"]),
        (lambda: dataclasses.replace(EVALUATION, cfg_scale=-1.0), ["cfg_scale is -1.0", "0 or more"]),
        (lambda: dataclasses.replace(EVALUATION, cfg_channels=0), ["cfg_channels is 0"]),
        (
            lambda: dataclasses.replace(EVALUATION, sample_seed=2**32),
            ["sample_seed is 4294967296", "from 0 to 4294967295"],
        ),
        (lambda: dataclasses.replace(EVALUATION, ema="yes"), ["ema is 'yes'", "true or false"]),
        (lambda: a_model(mlp_ratio=0.0), ["mlp_ratio is 0.0", "above 0"]),
        (lambda: a_model(size=1), ["size is 1", "a text"]),
        (lambda: OptimConfig(learning_rate=-1e-4), ["learning_rate is -0.0001", "above 0"]),
        (lambda: OptimConfig(learning_rate=float("nan")), ["learning_rate is nan"]),
        (lambda: OptimConfig(b2=1.0), ["b2 is 1.0", "below 1"]),
        (lambda: OptimConfig(ema_decay=1.5), ["ema_decay is 1.5", "at most 1"]),
        (lambda: OptimConfig(weight_decay="0"), ["weight_decay is '0'"]),
        (lambda: DiffusionConfig(timesteps=0), ["timesteps is 0"]),
        (lambda: DiffusionConfig(beta_start=0.5, beta_end=0.1), ["beta_end is 0.1", "0.5 or more"]),
        (lambda: a_run(seed=-1), ["seed is -1", "0 or more"]),
        (lambda: a_run(diffusion=DiffusionConfig(timesteps=10)), ["sampling_steps 16", "10"]),
        (
            lambda: a_run(model=a_cell(ladder="nano", class_dropout_prob=0.0), evaluations=(GUIDED,)),
            ["cfg_scale 1.5", "null"],
        ),
    ],
)
def test_a_bad_value_is_named_in_one_line(make, parts):
    with pytest.raises(UserError) as error:
        make()
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_an_evaluation_at_the_last_step_is_allowed():
    assert a_run(steps=100).evaluations == (EVALUATION,)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("whole", "number", "text", "truth"),
    [
        (np.int64, np.float64, np.str_, np.bool_),
        (np.int32, np.float32, np.str_, np.bool_),
        (np.uint8, np.float16, str, bool),
        (np.array, np.array, np.str_, np.array),
    ],
)
def test_numbers_out_of_numpy_are_the_numbers_they_are(whole, number, text, truth):
    """0.5 and 0.25 are exact in every format, so the identity is that of the plain numbers."""
    model = model_config(
        text("adaln_zero"), text("S"), whole(4), DATASETS["digits"], text("nano"), class_dropout_prob=number(0.25)
    )
    optim = OptimConfig(learning_rate=number(0.5), weight_decay=number(0.25))
    score = Evaluation(
        whole(5), text("digits"), whole(8), whole(4), cfg_scale=number(1.5), ema=truth(True), cfg_channels=whole(1)
    )
    run = RunConfig(model, DATASETS["digits"], whole(10), whole(8), whole(3), optim=optim, evaluations=(score,))
    plain_model = model_config("adaln_zero", "S", 4, DATASETS["digits"], "nano", class_dropout_prob=0.25)
    plain_score = Evaluation(5, "digits", 8, 4, cfg_scale=1.5, cfg_channels=1)
    plain = RunConfig(
        plain_model, DATASETS["digits"], 10, 8, 3, optim=OptimConfig(0.5, weight_decay=0.25), evaluations=(plain_score,)
    )
    assert run == plain and run.hash == plain.hash and run.run == plain.run and score.key == plain_score.key
    assert json.dumps(config.to_json(run)) == json.dumps(config.to_json(plain))
    assert type(run.steps) is int and type(run.optim.learning_rate) is float and type(score.ema) is bool


@pytest.mark.usefixtures("unchecked")
def test_a_float32_is_the_number_it_holds():
    optim = OptimConfig(learning_rate=np.float32(1e-4))
    assert optim.learning_rate == 9.999999747378752e-05 and optim == OptimConfig(learning_rate=float(np.float32(1e-4)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "value", [np.float64(10.0), np.float32(10), np.array([10]), np.str_("10"), np.bool_(True), np.int64(-1)]
)
def test_numpys_other_values_are_refused_as_pythons_are(value):
    with pytest.raises(UserError, match="steps is"):
        a_run(steps=value)


@pytest.mark.parametrize("field", ["steps", "batch_size", "seed"])
def test_a_whole_number_too_large_for_a_table_is_refused(field):
    with pytest.raises(UserError, match=rf"{field} is 1\d+: expected .* 9223372036854775807"):
        RunConfig(
            model_config("adaln_zero", "S", 2, DATASETS["digits"], "nano"),
            DATASETS["digits"],
            **{"steps": 1, field: 10**30},
        )
