"""Results and losses of a study's folder as frames, and the published rows in the same columns."""

import json

import numpy as np
import pytest
from synthetic_study import FLOOR, cells, score_of, write_run, write_study

from analysis.results import collect, losses, results
from dit.design import rows
from dit.errors import UserError
from dit.store.study import RUNNING, RunStore, Study, save_study, write_json

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=(8,))


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "demo", RUNS, failed={1: "loss is not finite at step 500"})


def test_one_row_for_each_score_in_the_tables_columns(folder):
    table = results(folder)
    assert list(table.columns) == rows.columns(["fd_digits"])
    done = table[table["status"] == "done"]
    assert len(done) == 4 * 5 + 2 - 4  # five scores a run, one more at patch 2, the failed run lost its last four
    last = done[(done["run"] == RUNS[0].run) & (done["step"] == 1000)].iloc[0]
    assert last["fd_digits"] == score_of(RUNS[0], RUNS[0].evaluations[4])
    assert table["step"].dtype == "Int64"


def test_a_failed_run_is_a_row_with_status_and_reason_and_no_score(folder):
    failed = results(folder).query("status == 'failed'")
    assert failed["run"].tolist() == [RUNS[1].run]
    row = failed.iloc[0]
    assert row["reason"] == "loss is not finite at step 500"
    assert np.isnan(row["fd_digits"])
    assert row["step"] == 500


def test_a_run_under_way_has_the_rows_scored_so_far_only(tmp_path):
    folder = tmp_path / "demo"
    save_study(folder, Study("demo", "", RUNS))
    write_run(folder, "demo", RUNS[0])
    RunStore(folder, RUNS[1]).set_status(RUNNING, step=10, attempt=1)
    assert set(results(folder)["run"]) == {RUNS[0].run}


def test_floor_protocol_identity_and_samples_are_at_hand(folder):
    study = collect(folder)
    assert set(study.floors.values()) == {FLOOR}
    assert set(study.table["protocol"].dropna()) == set(study.protocols)
    assert study.identities[RUNS[0].run] == RUNS[0].hash
    key = (RUNS[0].run, 1000, study.table.query("run == @RUNS[0].run and step == 1000")["protocol"].iloc[0])
    assert study.samples[key].is_file()
    assert study.sizes == ("S", "B")
    assert study.patches == (4, 2)


def test_filtering_keeps_the_order_of_sizes_and_patches(folder):
    study = collect(folder).where("patch_size == 2")
    assert set(study.table["patch_size"]) == {2}
    assert study.patches == (4, 2)


def test_no_results_yet_is_an_error(tmp_path):
    save_study(tmp_path / "demo", Study("demo", "", RUNS))
    with pytest.raises(UserError, match=r"no results in .*: none of its 4 runs has a score yet"):
        results(tmp_path / "demo")


def test_no_study_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no study in"):
        results(tmp_path)
    with pytest.raises(UserError, match=r"no folder .*nowhere: expected one that `dit sweep` wrote, an archive of one"):
        results(tmp_path / "nowhere")


def test_a_file_that_is_no_evaluation_is_left_out_and_told(folder, capsys):
    rows = len(results(folder))
    path = next((RunStore(folder, RUNS[0]).path / "evals").glob("*.json"))
    whole = json.loads(path.read_text())
    wrong = {
        "has protocol 'None', expected a dict": {"score": 1.0},
        "size is 'XL', the run's is 'S'": {**whole, "row": {**whole["row"], "size": "XL"}},
        "fd_digits is 'low', of another kind": {**whole, "row": {**whole["row"], "fd_digits": "low"}},
        "step is 1.5, of another kind": {**whole, "row": {**whole["row"], "step": 1.5}},
        "it has no fid, which its protocol is of": {
            **whole,
            "protocol": {**whole["protocol"], "features": "inception"},
        },
        "does not tell features and num_samples": {**whole, "protocol": {}},
        "floor is missing": {**whole, "floor": "low"},
    }
    for message, value in wrong.items():
        write_json(path, value)
        assert len(results(folder)) == rows - 1
        assert message in capsys.readouterr().err


def test_losses_hold_every_logged_step(folder):
    curves = losses(folder)
    assert len(curves) == 3 * 100 + 50
    assert {"run", "block", "size", "patch_size", "seed", "step", "loss", "grad_norm"} <= set(curves.columns)
    assert curves.groupby("run")["step"].max().to_dict()[RUNS[1].run] == 500


def test_losses_before_the_first_step_are_empty(tmp_path):
    save_study(tmp_path / "demo", Study("demo", "", RUNS))
    assert losses(tmp_path / "demo").empty


def test_published_rows_come_in_the_same_columns():
    table = results("paper")
    assert list(table.columns) == rows.columns(["fid", "sfid", "inception_score", "precision", "recall"])
    assert table.query("block == 'adaln_zero' and step == 400000 and num_samples == 50000")["fid"].min() == 19.47
    assert results("baselines")["study"].unique().tolist() == ["baselines"]
