"""Figures from published numbers and from a small study: what is drawn, what is skipped, and what the sidecars say."""

import itertools
import json
import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_study import cells, protocol_of, score_of, write_run, write_study

from analysis.comparable import at_common_step
from analysis.figures.compute import log_correlation
from analysis.figures.drawing import Skipped, new_figure, scores
from analysis.figures.labels import Point, label_points
from analysis.figures.registry import FIGURES, draw_all
from analysis.frames import frame
from analysis.provenance import rows_digest
from analysis.results import collect, results
from analysis.style import STYLES, Looks
from dit.design.config import digest
from dit.errors import UserError
from dit.store.study import RunStore, Study, save_study

RUNS = cells(blocks=("adaln", "adaln_zero"), sizes=("S", "XL"), patches=(4, 2), seeds=(0, 1), sampling=(8,), steps=500)
QUICK = [name for name in FIGURES if name != "forecast"]  # it validates seven forms


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return collect(write_study(tmp_path_factory.mktemp("study") / "demo", RUNS, failed={0: "stopped"}))


@pytest.fixture(scope="module")
def drawn(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return out, {outcome.name: outcome for outcome in draw_all(demo, out, QUICK)}


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    out = tmp_path_factory.mktemp("paper")
    return out, {outcome.name: outcome for outcome in draw_all(collect("paper"), out, QUICK)}


def test_published_gflops_correlate_with_fid_as_printed():
    table = results("paper").query("block == 'adaln_zero' and step == 400000 and num_samples == 50000")
    assert len(table) == 12
    assert round(log_correlation(table["gflops"], table["fid"]), 2) == -0.93


def test_the_drawn_correlation_is_the_published_one(paper):
    sidecar = json.loads((paper[0] / "fig8.json").read_text())
    assert {block: round(value, 2) for block, value in sidecar["log_correlation"].items()} == {"adaln_zero": -0.93}
    assert len(sidecar["rows"]) == 12


def test_a_study_with_everything_carries_every_figure(drawn):
    skipped = {name: outcome.skipped for name, outcome in drawn[1].items() if outcome.skipped}
    assert set(skipped) == {"fig12", "isoflop", "sampling"}
    assert skipped["fig12"] == "fd_digits is the only metric on record under its protocol"
    assert "no training compute is covered by the curves of three sizes" in skipped["isoflop"]
    assert "no cell was scored at 3 numbers of sampling steps" in skipped["sampling"]
    for outcome in (one for one in drawn[1].values() if not one.skipped):
        assert [path.suffix for path in outcome.files] == [".pdf", ".png", ".json"]
        assert all(path.stat().st_size > 500 for path in outcome.files)


def test_what_the_published_numbers_lack_is_skipped_with_the_reason(paper):
    skipped = {name: outcome.skipped for name, outcome in paper[1].items() if outcome.skipped}
    assert set(skipped) == {"fig5_grid", "fig7", "fig7_blocks", "fig10", "fig12", "fig13", "isoflop", "sampling"}
    assert "training losses" in skipped["fig13"]
    assert not list(paper[0].glob("fig13*"))


def test_sidecars_list_runs_rows_and_whole_protocols(demo, drawn):
    sidecar = json.loads((drawn[0] / "fig6.json").read_text())
    assert sidecar["study"] == "demo"
    hashes = {run.run: run.hash for run in RUNS}
    assert {one["run"]: one["hash"] for one in sidecar["runs"]} == {
        name: key for name, key in hashes.items() if name.startswith("adaln_zero")
    }
    by_run = {run.run: run for run in RUNS}
    for row in sidecar["rows"]:
        run = by_run[row["run"]]
        evaluation = next(one for one in run.evaluations if one.step == row["step"])
        assert row["value"] == score_of(run, evaluation)
        assert sidecar["protocols"][row["protocol"]] == json.loads(json.dumps(protocol_of(evaluation)))
    assert sidecar["rows_sha256"] == rows_digest(sidecar["rows"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", sidecar["created"])


def test_the_digest_of_rows_changes_with_a_score_and_not_with_their_order():
    rows = [{"run": "a", "value": 1.0}, {"run": "b", "value": 2.0}]
    assert rows_digest(rows) == rows_digest(rows[::-1])
    assert rows_digest(rows) != rows_digest([{"run": "a", "value": 1.0 + 1e-12}, rows[1]])


def test_equal_rows_give_equal_bytes(demo, drawn, tmp_path):
    list(draw_all(demo, tmp_path, ["fig5", "fig8"]))
    for name in ("fig5.pdf", "fig5.png", "fig8.pdf", "fig8.png"):
        assert (tmp_path / name).read_bytes() == (drawn[0] / name).read_bytes()


def test_only_one_protocol_is_on_an_axis_except_over_sampling_steps(drawn):
    protocols = {
        name: json.loads((drawn[0] / f"{name}.json").read_text())["protocols"]
        for name in ("fig5", "fig8", "fig9", "fig10")
    }
    assert [len(protocols[name]) for name in ("fig5", "fig8", "fig9")] == [1, 1, 1]
    steps = {one.pop("sampling_steps") for one in protocols["fig10"].values()}
    assert steps == {8, 32}
    assert len({digest(one) for one in protocols["fig10"].values()}) == 1


def test_scores_under_two_protocols_for_the_same_runs_are_an_error(tmp_path):
    runs = tuple(
        replace(run, evaluations=(run.evaluations[4], replace(run.evaluations[4], cfg_scale=1.5)))
        for run in cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=())
    )
    study = collect(write_study(tmp_path / "demo", runs))
    with pytest.raises(UserError, match=r"differ in cfg_scale 1.* and 1.*--where"):
        list(draw_all(study, tmp_path / "figures", ["fig8"]))
    chosen = study.where("cfg_scale == 1.5")
    assert [outcome.skipped for outcome in draw_all(chosen, tmp_path / "figures", ["fig8"])] == [None]


def test_the_axis_is_named_after_the_features(demo):
    assert scores(demo).label == "FD (digits features, 512 samples)"
    assert scores(collect("paper")).label == "FID-50K"


def test_a_failed_or_longer_run_does_not_choose_the_step():
    rows = frame([{"run": run, "step": step} for run in "abcd" for step in (100, 200)] + [{"run": "a", "step": 900}])
    assert set(at_common_step(rows)["step"]) == {200}
    late = rows[~((rows["run"] == "b") & (rows["step"] == 200))]
    assert set(at_common_step(late)["step"]) == {200}


def test_the_published_law_is_drawn_with_its_held_out_error(tmp_path):
    (outcome,) = draw_all(collect("paper"), tmp_path, ["forecast"])
    assert outcome.skipped is None
    sidecar = json.loads((tmp_path / "forecast.json").read_text())
    chosen = sidecar["validation"]["chosen"]
    form = next(one for one in sidecar["validation"]["forms"] if one["form"] == chosen)
    assert [one["cell"] for one in form["folds"][-1]["held_out"]] == ["XL/8", "XL/4", "XL/2"]
    assert sidecar["law"]["variables"] == ["train_gflops"]


def test_fig12_shows_every_metric_on_record(demo, tmp_path):
    table = demo.table.assign(sfid=2 * demo.table["fd_digits"], recall=1 / demo.table["fd_digits"], kid=np.nan)
    (outcome,) = draw_all(replace(demo, table=table), tmp_path, ["fig12"])
    assert outcome.skipped is None
    found = json.loads((tmp_path / "fig12.json").read_text())["log_correlation"]
    assert list(found) == ["fd_digits", "sfid", "recall"]
    assert found["sfid"] == pytest.approx(found["fd_digits"])
    assert found["recall"] > 0


def test_isoflops_are_drawn_for_the_patch_sizes_that_have_them(tmp_path):
    runs = cells(blocks=("adaln_zero",), sizes=("S", "B", "L"), patches=(4, 2), sampling=())
    steps = (10, 20, 40, 80, 160, 320, 640, 1000)
    runs = tuple(
        replace(run, evaluations=tuple(replace(run.evaluations[0], step=step) for step in steps)) for run in runs
    )
    (outcome,) = draw_all(collect(write_study(tmp_path / "demo", runs)), tmp_path, ["isoflop"])
    assert outcome.skipped is None
    found = json.loads((tmp_path / "isoflop.json").read_text())["isoflops"]
    assert [one["patch_size"] for one in found] == [4, 2]
    assert all(len(budget["sizes"]) == 3 for one in found for budget in one["budgets"])


def test_what_sampling_buys_is_drawn_with_its_law(tmp_path):
    runs = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(1,), sampling=(8, 16), steps=100)
    (outcome,) = draw_all(collect(write_study(tmp_path / "demo", runs)), tmp_path, ["sampling"])
    assert outcome.skipped is None
    law = json.loads((tmp_path / "sampling.json").read_text())["sampling_law"]
    assert [cell["steps"] for cell in law["cells"]] == [[8, 16, 32], [8, 16, 32]]


def test_labels_keep_off_each_other_the_marks_and_the_curves():
    with matplotlib.rc_context(STYLES["paper"].rc):
        figure, [[axes]] = new_figure(2.5, width=3.25)
        rng = np.random.default_rng(3)
        x, y = rng.uniform(0.25, 0.75, 14), rng.uniform(0.2, 0.8, 14)
        axes.plot(x, y, "o", markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        label_points(figure, [(axes, [Point(a, b, f"XL/{n}", "#000000") for n, (a, b) in enumerate(zip(x, y))])])
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == 14
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    marks = axes.transData.transform(np.stack([x, y], axis=1))
    inside = [box.contains(*mark) for box in boxes for mark in marks]
    assert not any(inside)


def test_other_labels_in_one_run_are_an_error_and_no_samples_a_reason(tmp_path):
    runs = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=())
    study = collect(write_study(tmp_path / "demo", runs))
    path = next(path for key, path in study.samples.items() if key[0] == runs[1].run)
    with np.load(path) as file:
        images, labels = file["images"], file["labels"]
    np.savez(path, images=images, labels=labels[::-1])
    with pytest.raises(UserError, match="have other labels"):
        list(draw_all(study, tmp_path / "figures", ["fig7"]))
    with pytest.raises(Skipped, match="no samples"):
        FIGURES["fig7"].draw(replace(study, samples={}))


def test_only_failures_on_record_skip_every_figure(tmp_path):
    runs = tuple(replace(run, evaluations=()) for run in RUNS[:2])
    save_study(tmp_path / "demo", Study("demo", "", runs))
    for run in runs:
        write_run(tmp_path / "demo", "demo", run, failed="out of memory", images=False)
        for path in (RunStore(tmp_path / "demo", run).path / "metrics").glob("*"):
            path.unlink()
    outcomes = list(draw_all(collect(tmp_path / "demo"), tmp_path / "figures"))
    assert [outcome.name for outcome in outcomes] == [name for name in FIGURES if name != "by"]
    assert all(outcome.skipped for outcome in outcomes)


def test_an_unknown_figure_and_a_file_in_the_place_of_the_folder_are_errors(demo, tmp_path):
    with pytest.raises(UserError, match="unknown figure 'fig99': expected one of fig2"):
        list(draw_all(demo, tmp_path, ["fig99"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: expected a folder"):
        list(draw_all(demo, tmp_path / "file"))


def test_an_identity_keeps_its_look():
    latents, digits = Looks(("S", "B", "L", "XL"), (8, 4, 2)), Looks(("S", "XL"), (4, 2, 1))
    assert latents.cell("S", 8).colour == latents.cell("S", 2).colour == digits.size("S").colour
    assert latents.cell("S", 2).marker == digits.cell("XL", 1).marker == digits.patch(1).marker
    looks = [latents.cell(size, patch) for size in latents.sizes for patch in latents.patches]
    assert len({(look.colour, look.marker) for look in looks}) == 12
    assert Looks(("S", "M"), (2,)).size("M").colour != Looks(("S", "M"), (2,)).size("S").colour
