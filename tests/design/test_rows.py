"""The columns of the results table: their names, their order, and one cell worked out by hand."""

from dataclasses import replace

import pytest

from dit.design import rows
from dit.design.config import DATASETS, Evaluation, ModelConfig, OptimConfig, RunConfig, model_config

DOCUMENTED = [
    *("run", "study", "block", "size", "patch_size", "seed", "image_size", "tokens", "params", "gflops", "batch_size"),
    *(
        "step",
        "images_seen",
        "train_gflops",
        "sampling_steps",
        "nfe",
        "sampling_gflops",
        "cfg_scale",
        "num_samples",
        "fd_digits",
    ),
    *("protocol", "status", "source", "reason", "citation"),
]
SCORED_ONLY = {"sampling_steps", "nfe", "sampling_gflops", "cfg_scale", "num_samples", "fd_digits", "protocol"}

MODEL = ModelConfig(
    "adaln_zero", 4, depth=3, hidden_size=24, num_heads=2, input_size=8, in_channels=1, num_classes=10, size="S"
)
RUN = RunConfig(MODEL, DATASETS["digits"], steps=100, batch_size=64, seed=3)
EVALUATION = Evaluation(50, "digits", num_samples=512, sampling_steps=32)

# By hand, with d = 24, n = 3 blocks, T = 4 tokens, patches of 16 pixels, and 32 numbers out per patch:
EMBED = 4 * 16 * 24 + 256 * 24 + 24 * 24
BLOCK = 4 * 4 * 24**2 + 2 * 4 * 4 * 24 + 2 * 4 * 24 * 96 + 6 * 24**2
FINAL = 4 * 24 * 32 + 2 * 24**2
GFLOPS = (EMBED + 3 * BLOCK + FINAL) / 1e9


def test_the_columns_are_the_documented_ones_in_order():
    assert rows.columns(["fd_digits"]) == DOCUMENTED
    assert rows.columns(["fid", "sfid"])[19:21] == ["fid", "sfid"]


def test_the_columns_over_seeds_are_means_with_their_spread_and_count():
    assert rows.columns_over_seeds(["fd_digits"]) == [
        *("recipe", "study", "block", "size", "patch_size", "image_size", "tokens", "params", "gflops", "batch_size"),
        *(
            "step",
            "images_seen",
            "train_gflops",
            "sampling_steps",
            "nfe",
            "sampling_gflops",
            "cfg_scale",
            "num_samples",
        ),
        *("fd_digits", "fd_digits_sd", "n", "protocol", "source", "citation"),
    ]


def test_a_score_fills_every_column_in_order():
    row = rows.score_row(RUN, "mine", EVALUATION, {"fd_digits": 12.5}, "abc")
    assert list(row) == DOCUMENTED[:-1]  # only what is published has a citation


def test_a_plan_fills_the_columns_known_before_in_order():
    row = rows.planned_row(RUN, "mine")
    assert list(row) == [name for name in DOCUMENTED if name not in SCORED_ONLY | {"citation"}]


def test_one_cell_by_hand():
    row = rows.score_row(RUN, "mine", EVALUATION, {"fd_digits": 12.5}, "abc")
    params = row.pop("params")
    gflops = {name: row.pop(name) for name in ("gflops", "train_gflops", "sampling_gflops")}
    assert row == {
        "run": f"adaln_zero-S-4-s3-{RUN.hash}",
        "study": "mine",
        "block": "adaln_zero",
        "size": "S",
        "patch_size": 4,
        "seed": 3,
        "image_size": 8,
        "tokens": 4,
        "batch_size": 64,
        "step": 50,
        "images_seen": 3200,
        "sampling_steps": 32,
        "nfe": 32,
        "cfg_scale": 1.0,
        "num_samples": 512,
        "fd_digits": 12.5,
        "protocol": "abc",
        "status": "done",
        "source": "mine",
        "reason": None,
    }
    attention, mlp, modulation = 4 * (24**2 + 24), 2 * 24 * 96 + 96 + 24, 6 * (24**2 + 24)
    embeddings = (16 * 24 + 24) + (256 * 24 + 24 + 24**2 + 24) + 11 * 24
    assert params == embeddings + 3 * (attention + mlp + modulation) + (24 * 32 + 32) + 2 * (24**2 + 24)
    assert gflops == pytest.approx(
        {"gflops": GFLOPS, "train_gflops": GFLOPS * 64 * 50 * 3, "sampling_gflops": GFLOPS * 32}, rel=1e-12
    )


def test_a_planned_cell_stands_at_the_end_of_its_training():
    row = rows.planned_row(RUN, "mine")
    assert (row["step"], row["images_seen"], row["status"], row["reason"]) == (100, 6400, "planned", None)
    assert row["train_gflops"] == pytest.approx(GFLOPS * 64 * 100 * 3, rel=1e-12)
    assert rows.planned_row(RUN, "mine", "running")["status"] == "running"


def test_guidance_doubles_the_cost_of_sampling_and_nothing_else():
    plain = rows.score_row(RUN, "mine", EVALUATION, {"fd_digits": 1.0}, "abc")
    guided = rows.score_row(RUN, "mine", replace(EVALUATION, cfg_scale=1.5), {"fd_digits": 1.0}, "abc")
    assert {name for name in plain if plain[name] != guided[name]} == {"sampling_gflops", "cfg_scale"}
    assert guided["sampling_gflops"] == 2 * plain["sampling_gflops"]


def test_the_score_stands_under_the_name_of_its_features():
    row = rows.score_row(RUN, "mine", replace(EVALUATION, features="inception"), {"fid": 2.0}, "abc")
    assert row["fid"] == 2.0
    assert "fd_digits" not in row


FAST = replace(RUN, optim=OptimConfig(learning_rate=1e-3))


def test_seeds_longer_training_and_other_scores_make_no_variant():
    assert rows.varied([RUN, replace(RUN, seed=4, steps=200, evaluations=(EVALUATION,))]) == {}
    assert rows.varied([RUN, replace(FAST, model=replace(MODEL, patch_size=2))]) == {}  # no cell has both


def test_what_runs_of_one_cell_differ_in_is_their_variant():
    dropped = replace(RUN, model=replace(MODEL, class_dropout_prob=0.3))
    other = replace(RUN, model=replace(MODEL, patch_size=2))
    assert {run: row["variant"] for run, row in rows.varied([RUN, FAST, dropped, other]).items()} == {
        RUN.run: "class_dropout_prob=0.1, learning_rate=0.0001",
        FAST.run: "class_dropout_prob=0.1, learning_rate=0.001",
        dropped.run: "class_dropout_prob=0.3, learning_rate=0.0001",
        other.run: "class_dropout_prob=0.1, learning_rate=0.0001",
    }


def test_two_data_sets_are_told_by_name_alone():
    runs = [
        RunConfig(model_config("adaln", "S", 2, DATASETS[name]), DATASETS[name], steps=1)
        for name in ("imagenet256", "imagenet512")
    ]
    assert list(rows.varied(runs).values()) == [
        {"variant": f"data={name}", "data": name} for name in ("imagenet256", "imagenet512")
    ]


def test_a_variant_stands_beside_the_cell():
    apart = rows.varied([RUN, FAST])
    assert apart[FAST.run] == {"variant": "learning_rate=0.001", "learning_rate": 1e-3}
    row = rows.planned_row(FAST, "mine", apart=apart[FAST.run])
    assert list(row)[11:13] == rows.columns([], list(apart[FAST.run]))[11:13] == ["variant", "learning_rate"]
    assert "variant" not in rows.planned_row(RUN, "mine")


def test_the_recipe_is_all_but_the_seed():
    assert rows.recipe(RUN) == rows.recipe(replace(RUN, seed=9)) != rows.recipe(FAST)
