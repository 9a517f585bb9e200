"""Scores against published ones and between studies: what may be compared, and when a gap is more than noise."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic_study import cells, score_of, write_study

from analysis.compare import Noise, compare, half_width, standard_error
from analysis.results import collect
from dit.cli import main
from dit.design.config import DATASETS, Evaluation, OptimConfig, RunConfig, digest, model_config
from dit.design.rows import score_row
from dit.errors import UserError
from dit.store.study import DONE, RunStore, Study, save_study, write_json

IMAGENET = DATASETS["imagenet256"]
PAPER = {("S", 2): 68.40, ("B", 2): 43.47, ("XL", 2): 19.47}


def reproduction(folder, scores, reference="/data/VIRTUAL_imagenet256_labeled.npz", **changes):
    """A study of the paper's own cells, scored as the paper does; `scores` are FIDs by (size, seed)."""
    evaluation = Evaluation(400_000, "inception", 50_000, decoder="sd-vae-ft-mse", **changes)
    runs = {
        (size, seed): RunConfig(
            model_config("adaln_zero", size, 2, IMAGENET), IMAGENET, 400_000, seed=seed, evaluations=(evaluation,)
        )
        for size, seed in scores
    }
    save_study(folder, Study("again", "", tuple(runs.values())))
    declared = {name: value for name, value in vars(evaluation).items() if name != "step"}
    protocol = {
        **declared,
        "extractor_sha256": "e" * 64,
        "reference": reference,
        "reference_sha256": "f" * 64,
        "metric": "fid",
    }
    for key, run in runs.items():
        store = RunStore(folder, run)
        row = score_row(run, "again", evaluation, {evaluation.metric: scores[key]}, digest(protocol))
        write_json(store.evaluation_path(evaluation), {"schema_version": 1, "row": row, "protocol": protocol})
        store.set_status(DONE, step=run.steps, attempt=1)
    return collect(folder)


def test_a_gap_inside_the_noise_of_two_single_runs_is_not_significant(tmp_path):
    band = 1.96 * 1.3 * math.sqrt(2)  # per cent, where both scores are near
    study = reproduction(tmp_path / "a", {("S", 0): 68.40 * 1.03, ("B", 0): 43.47 * 1.05, ("XL", 0): 19.47 * 0.95})
    rows = {row["size"]: row for row in compare(study, collect("paper")).rows}
    assert [rows[size]["verdict"] for size in ("S", "B", "XL")] == ["not significant", "worse", "better"]
    for size, change in (("S", 3), ("B", 5), ("XL", -5)):
        row = rows[size]
        assert row["against"] == PAPER[size, 2]
        assert row["delta_percent"] == pytest.approx(change)
        assert row["delta"] == pytest.approx(PAPER[size, 2] * change / 100)
        assert row["band_percent"] == pytest.approx(band, rel=0.03)
        assert row["band_from"] == "1.3 % assumed"
        assert (row["against_source"], row["differs"]) == ("arXiv:2212.09748 Table 4", None)
        assert {"extractor_sha256", "reference_sha256", "sample_seed"} <= set(row["unsaid"].split(", "))


def test_seeds_narrow_or_widen_the_band_by_their_own_spread(tmp_path):
    tight = reproduction(tmp_path / "a", {("S", seed): 71.0 + 0.01 * seed for seed in range(3)})
    loose = reproduction(tmp_path / "b", {("S", seed): 71.0 + 8 * seed for seed in range(3)})
    [near], [far] = (compare(study, collect("paper")).rows for study in (tight, loose))
    assert near["band_from"] == far["band_from"] == "seeds, 1.3 % assumed"
    assert near["band_percent"] == pytest.approx(1.96 * 1.3, rel=1e-3)  # the published run's alone
    assert (near["verdict"], far["verdict"]) == ("worse", "not significant")
    assert (near["score_n"], near["against_n"]) == (3, 1)


def test_two_sets_of_seeds_are_compared_as_welch_does():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.normal(20, 1, rng.integers(2, 6)), rng.normal(22, 3, rng.integers(2, 6))
        errors = [standard_error("fid", one.mean(), one.std(ddof=1), len(one), Noise()) for one in (first, second)]
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        assert half_width(errors, 0.95) == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_the_band_covers_a_true_equality_as_often_as_it_says():
    rng = np.random.default_rng(1)
    sets = rng.normal(20, 20 * 0.013, (4000, 2))
    errors = [[standard_error("fid", score, None, 1, Noise()) for score in pair] for pair in sets]
    inside = [abs(pair[0] - pair[1]) <= half_width(both, 0.95) for pair, both in zip(sets, errors)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_scores_without_a_known_spread_get_no_verdict():
    assert standard_error("precision", 0.67, None, 1, Noise()) is None
    assert standard_error("precision", 0.67, 0.01, 4, Noise()) == (0.005, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cfg_scale": 1.5}, "cfg_scale 1.5 and 1.0"),
        ({"sampler": "ddim"}, "sampler ddim and ddpm"),
        ({"sampling_steps": 50}, "sampling_steps 50 and 250"),
        ({"ema": False}, "ema False and True"),
        ({"reference": "train.npz"}, "reference train.npz and ImageNet 256"),
    ],
)
def test_another_protocol_is_named_and_gives_no_difference_unless_ignored(tmp_path, changes, words):
    study = reproduction(tmp_path / "a", {("B", 0): 60.0}, **changes)
    [row] = compare(study, collect("paper")).rows
    assert row["verdict"] == "not comparable"
    assert words in row["differs"]
    assert not {"delta", "delta_percent", "band_percent"} & row.keys()
    parts = [one.split()[0] for one in row["differs"].split("; ")]
    [row] = compare(study, collect("paper"), ignore=parts).rows
    assert row["verdict"] == "worse"
    assert row["delta"] == pytest.approx(60.0 - 43.47)
    assert row["differs"].count("(ignored)") == len(parts)


def test_cells_of_other_sizes_are_told_by_what_they_differ_in(tmp_path):
    study = collect(write_study(tmp_path / "demo", cells(sizes=("S",), patches=(4, 1), sampling=())))
    found = compare(study, collect("paper"))
    assert {row["verdict"] for row in found.rows} == {"not comparable"}
    assert "features digits and inception" in found.rows[0]["differs"]
    assert "params 30896 and 33000000" in found.rows[0]["differs"]
    assert found.rows[0]["metric"] == "fd_digits, fid"
    assert "adaln S/4" in found.unmatched
    assert "adaln_zero S/1" in found.unmatched


RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4,), seeds=(0, 1), sampling=(8,))


def test_two_studies_are_matched_under_each_protocol_and_their_training_told(tmp_path):
    first = collect(write_study(tmp_path / "a", RUNS, "a"))
    fast = tuple(replace(run, optim=OptimConfig(learning_rate=1e-3)) for run in RUNS)
    second = collect(write_study(tmp_path / "b", fast, "b"))
    found = compare(first, second)
    assert len(found.rows) == 4  # two cells, two protocols each
    for row in found.rows:
        assert row["verdict"] == "not significant"
        assert (row["delta"], row["step"], row["differs"]) == (0.0, 1000, None)
        assert row["training"] == "optim.learning_rate 0.0001 and 0.001"
        assert row["band_from"] == "seeds"
    every = compare(first, second, every_step=True).rows
    assert [row["step"] for row in every if row["size"] == "S"] == [200, 400, 600, 800, 1000, 1000]


def test_a_study_that_trained_on_is_compared_at_the_last_common_step(tmp_path):
    first = collect(write_study(tmp_path / "a", RUNS, "a"))
    second = collect(write_study(tmp_path / "b", RUNS, "b", failed={i: "stopped" for i in range(4)}))
    rows = compare(first, second).rows
    assert {row["step"] for row in rows if row["verdict"] == "not significant"} == {400}
    for row in rows:
        if row["step"] == 400:
            same = [run for run in RUNS if run.model.size == row["size"]]
            assert row["score"] == pytest.approx(np.mean([score_of(run, run.evaluations[1]) for run in same]))


def test_the_command_prints_the_table_and_what_to_know_beside_it(tmp_path, capsys):
    reproduction(tmp_path / "a", {("S", 0): 68.5, ("XL", 0): 30.0})
    assert main(["compare", str(tmp_path / "a"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["verdict"] for row in json.loads(out)] == ["not significant", "worse"]
    assert "1 not significant, 1 worse" in err
    assert "taken to agree: cfg_channels, sample_seed" in err
    for style in ("table", "markdown", "csv"):
        assert main(["compare", str(tmp_path / "a"), "--format", style]) == 0
        assert "not significant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ignore", "colour"], "--ignore colour: no such part; expected some of autoguidance, batch_size"),
        (["baselines"], "no cell of 'again' is in 'baselines'"),
        (["--noise", "0"], "--noise 0: expected a percentage"),
        (["nowhere"], "no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    reproduction(tmp_path / "a", {("S", 0): 68.5})
    assert main(["compare", str(tmp_path / "a"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_no_common_cell_is_an_error(tmp_path):
    first = collect(write_study(tmp_path / "a", RUNS[:1], "a"))
    second = collect(write_study(tmp_path / "b", RUNS[2:3], "b"))
    with pytest.raises(UserError, match=r"no cell of 'a' is in 'b': expected the same block, .* found adaln_zero S/4"):
        compare(first, second)
