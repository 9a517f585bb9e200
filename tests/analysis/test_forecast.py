"""Forecasts: frozen before the score is known, found out when changed, scored afterwards; on a made-up study on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import synthetic_study
from synthetic_study import cells, score_of, write_run, write_study

from analysis import forecast
from analysis.fits.validation import validate
from analysis.results import collect
from dit.cli import main
from dit.errors import UserError
from dit.store.study import Study, save_study

RUNS = cells(blocks=("adaln_zero",), sampling=())
SMALL = tuple(run for run in RUNS if run.model.size != "XL")
LARGE = tuple(run for run in RUNS if run.model.size == "XL")


def planned(folder):
    """A study of which everything but XL has run."""
    write_study(folder, SMALL)
    save_study(folder, Study("demo", "A made-up study.", RUNS))
    return folder


@pytest.fixture
def few_forms(monkeypatch):
    """Three forms instead of all: where validation is not what is tested."""
    forms = ("power", "surface", "surface+images")
    monkeypatch.setattr(forecast, "validate", lambda data, loss: validate(data, forms, loss))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_study, "_images", lambda score: np.zeros((1, 8, 8, 1), np.uint8))
    return planned(tmp_path / "study")


def only_forecast(folder):
    [path] = (folder / "forecasts").glob("*.json")
    return path


def test_a_forecast_is_frozen_before_training_and_scored_after(folder, capsys):
    assert main(["forecast", str(folder), "--for", "XL"]) == 0
    printed = capsys.readouterr()
    path = only_forecast(folder)
    value = json.loads(path.read_text())
    assert (
        value["sha256"] in printed.err
        and value["sha256"][:12] in path.name
        and path.name.startswith(value["created"][:10])
    )
    assert [cell["cell"] for cell in value["cells"]] == [f"adaln_zero XL/{patch}" for patch in (4, 2, 1)]
    assert {cell["step"] for cell in value["cells"]} == {1000} and {cell["status"] for cell in value["cells"]} == {
        "planned"
    }
    law = value["laws"][0]
    assert law["median_error"] is not None and law["form"] == law["validation"]["chosen"]
    assert len(value["inputs"]) == 5 * len(SMALL) and "forward_rms" in printed.out and law["form"] in printed.out

    assert main(["forecast", str(folder), "--score"]) == 0
    assert "not yet measured: adaln_zero XL/4 at step 1000" in capsys.readouterr().err
    for run in LARGE:
        write_run(folder, "demo", run)
    [scored] = forecast.score_all(collect(folder), folder / "forecasts")
    assert scored.trouble is None and not scored.pending and len(scored.cells) == 3
    for cell, run in zip(scored.cells, LARGE):
        truth = score_of(run, run.evaluations[-1])
        assert cell.measured == pytest.approx(truth) and cell.error == pytest.approx(cell.forecast / truth - 1)
        assert abs(cell.error) < 0.2
        assert cell.forward_error == law["median_error"]
    assert main(["forecast", str(folder), "--score"]) == 0
    assert "inside" in capsys.readouterr().out


def test_each_blocks_forecast_is_scored_beside_its_own_forward_error(folder, few_forms, capsys):
    runs = (*RUNS, *cells(blocks=("adaln",), sampling=()))
    harder = [run for run in runs if run.model.block == "adaln" and run.model.size != "XL"]
    save_study(folder, Study("demo", "A made-up study.", runs))
    for run in harder:
        write_run(folder, "demo", run)
    assert main(["forecast", str(folder), "--for", "XL"]) == 0
    value = json.loads(only_forecast(folder).read_text())
    promised = {law["block"]: law["median_error"] for law in value["laws"]}
    for run in runs:
        if run.model.size == "XL":
            write_run(folder, "demo", run)
    [scored] = forecast.score_all(collect(folder), folder / "forecasts")
    assert len(promised) == 2 and len(set(promised.values())) == 2 and len(scored.cells) == 6
    assert all(cell.forward_error == promised[cell.block] for cell in scored.cells)


@pytest.mark.parametrize("harm", ["number", "date", "name", "input"])
def test_a_changed_forecast_is_found_out(folder, few_forms, capsys, harm):
    assert main(["forecast", str(folder), "--for", "XL/2"]) == 0
    path = only_forecast(folder)
    value = json.loads(path.read_text())
    if harm == "number":
        value["cells"][0]["score"] *= 1.01
        path.write_text(json.dumps(value))
    elif harm == "date":
        path.write_text(path.read_text().replace(value["created"], "2020-01-01T00:00:00+00:00"))
    elif harm == "name":
        value["cells"][0]["score"] *= 1.01
        path.write_text(json.dumps({**value, "sha256": forecast.content_hash(value)}))
    else:
        row = next((folder / "runs" / SMALL[0].run / "evals").glob("*.json"))
        kept = json.loads(row.read_text())
        kept["row"]["fd_digits"] += 0.5
        row.write_text(json.dumps(kept))
    capsys.readouterr()
    assert main(["forecast", str(folder), "--score"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    expected = "1 of its 45 input scores have changed" if harm == "input" else "has changed since it was written"
    assert expected in said


def test_a_known_score_is_not_forecast_unless_it_says_so(folder, few_forms):
    study = collect(folder)
    with pytest.raises(UserError, match=r"adaln_zero L/4 already has fd_digits .* at step 1000: .*--retrospective"):
        forecast.freeze(study, "L")
    made = forecast.freeze(study, "L", retrospective=True, form="surface")
    assert made.retrospective and not {row["run"] for row in made.inputs} & {run.run for run in SMALL[6:]}
    assert made.laws[0].median_error is None and "no forward validation" in made.cells[0].said
    with pytest.raises(UserError, match=r"no form can be chosen .* name one with --form"):
        forecast.freeze(study, "L", retrospective=True)


def test_a_size_that_the_study_lacks_is_forecast_from_its_ladder(tmp_path, few_forms, monkeypatch):
    monkeypatch.setattr(synthetic_study, "_images", lambda score: np.zeros((1, 8, 8, 1), np.uint8))
    study = collect(write_study(tmp_path / "study", SMALL))
    made = forecast.freeze(study, "XL/2")
    [cell] = made.cells
    [run] = [run for run in LARGE if run.model.patch_size == 2]
    assert cell.status == "not in the study" and cell.run == run.run and cell.step == 1000
    assert cell.score == pytest.approx(score_of(run, run.evaluations[-1]), rel=0.15)


def test_far_forecasts_are_refused_unless_forced(folder, few_forms, monkeypatch):
    monkeypatch.setattr(forecast, "MAX_DECADES", 0.01)
    study = collect(folder)
    [cell] = forecast.freeze(study, "XL/1").cells
    assert cell.score is None and "decades past the data" in cell.said and "--force" in cell.said
    assert forecast.freeze(study, "XL/1", force=True).cells[0].score > 0


def test_a_form_of_one_step_does_not_know_another(folder, few_forms):
    later = tuple(
        replace(run, steps=3000, evaluations=tuple(replace(one, step=one.step * 3) for one in run.evaluations[-1:]))
        for run in LARGE
    )
    save_study(folder, Study("demo", "A made-up study.", (*SMALL, *later)))
    made = forecast.freeze(collect(folder), "XL", form="power")
    assert all(cell.score is None and "does not know step 3000" in cell.said for cell in made.cells)
    assert all(cell.score for cell in forecast.freeze(collect(folder), "XL", form="surface+images").cells)


def test_the_interval_is_no_narrower_than_the_forward_error(folder, few_forms):
    made = forecast.freeze(collect(folder), "XL/2", form="surface+images")
    [cell], [law] = made.cells, made.laws
    assert law.rms_error > 0.01
    assert np.log(cell.prediction.high / cell.prediction.low) > 2 * 1.7 * law.rms_error


@pytest.mark.parametrize(
    "target, said",
    [
        ("Q", "--for 'Q'"),
        ("sizes == 'XL'", "--for \"sizes == 'XL'\""),
        ("patch_size == 16", "names no cell"),
        ("XL/16", "names no cell"),
    ],
)
def test_a_target_that_names_nothing_is_one_line(folder, capsys, target, said):
    assert main(["forecast", str(folder), "--for", target]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and "--where" not in lines[0]


def test_no_forecast_yet_is_one_line(folder, capsys):
    assert main(["forecast", str(folder), "--score"]) == 2
    assert "freeze one with `dit forecast DIR --for XL`" in capsys.readouterr().err
    (folder / "forecasts").mkdir()
    (folder / "forecasts" / "other.json").write_text("{}")
    assert main(["forecast", str(folder), "--score"]) == 2
    assert "is not a forecast" in capsys.readouterr().err


def test_a_frozen_forecast_is_not_overwritten(folder, few_forms, tmp_path):
    made = forecast.freeze(collect(folder), "XL/2")
    forecast.save(made, tmp_path)
    with pytest.raises(UserError, match="is not overwritten"):
        forecast.save(made, tmp_path)


def test_published_numbers_retrospectively(tmp_path, capsys):
    target = "size == 'XL' and block == 'adaln_zero' and image_size == 256"
    assert main(["forecast", "paper", "--for", target, "--out", str(tmp_path)]) == 2
    assert "already has fid 106.4 at step 400000" in capsys.readouterr().err
    assert main(["forecast", "paper", "--for", target, "--out", str(tmp_path), "--retrospective", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    by_cell = {cell["cell"]: cell for cell in value["cells"]}
    assert value["laws"][0]["form"] == "surface" and by_cell["adaln_zero XL/2"]["score"] == pytest.approx(
        19.63, abs=0.01
    )
    assert value["laws"][0]["median_error"] == pytest.approx(0.185, abs=0.002)
    assert "extrapolated 0.17 decades" in by_cell["adaln_zero XL/2"]["said"]
