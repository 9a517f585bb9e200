"""Any field of a run as an axis: what is chosen, what may share it, and what comes out, against paired t tests and by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import synthetic_study
from scipy import stats
from synthetic_study import cells, write_study

from analysis.axes import axis_of, fields_apart
from analysis.figures.registry import draw_all, drawn
from analysis.figures.verification import verify
from analysis.paired import effect
from analysis.results import collect
from analysis.style import STYLES
from dit.cli import main
from dit.design.config import ObjectiveConfig, OptimConfig
from dit.errors import UserError

SLOW = cells(blocks=("adaln_zero", "adaln"), sizes=("S", "B", "L"), patches=(4,), seeds=(0, 1, 2), sampling=())
FEW = SLOW[::3]
FAST = tuple(replace(run, optim=OptimConfig(learning_rate=1e-3)) for run in SLOW)
DROPPED = tuple(replace(run, model=replace(run.model, class_dropout_prob=0.3)) for run in SLOW)

LAW = synthetic_study.score_of


def noisy(run, evaluation):
    """The known law, times what the learning rate and the block do together, and noise of the run's own."""
    noise = np.random.default_rng([run.seed, len(run.model.block), int(1e5 * run.optim.learning_rate)]).normal()
    factor = 0.5 if run.optim.learning_rate > 5e-4 and run.model.block == "adaln" else 1.0
    return LAW(run, evaluation) * factor * (1 + 0.02 * noise)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two learning rates of six cells, three seeds each: the faster one helps the block adaln alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_study, "score_of", noisy)
        return collect(write_study(tmp_path_factory.mktemp("one") / "demo", (*SLOW, *FAST), images=False))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Learning rate and dropout vary, one seed each."""
    runs = (*SLOW[::3], *FAST[::3], *DROPPED[::3])
    return collect(write_study(tmp_path_factory.mktemp("both") / "demo", runs, images=False))


def test_the_one_field_that_differs_is_the_axis(study):
    axis = axis_of(study)
    assert (axis.field, axis.values, axis.parts) == ("learning_rate", (1e-4, 1e-3), ())
    for value, part in axis.split().items():
        assert set(part.table["learning_rate"]) == {value}
        assert part.table["run"].nunique() == len(SLOW)
    assert study.table["learning_rate"].dtype == float
    assert axis_of(study.where("learning_rate == 0.001")) is None


def test_several_fields_are_named_and_one_is_chosen(both):
    with pytest.raises(
        UserError, match=r"differ in class_dropout_prob and learning_rate: choose .*--by class_dropout_prob --where"
    ):
        axis_of(both)
    with pytest.raises(UserError, match=r'--by learning_rate --where "class_dropout_prob == 0\.1"'):
        axis_of(both, "learning_rate")
    assert axis_of(both.where("class_dropout_prob == 0.1"), "learning_rate").values == (1e-4, 1e-3)
    assert len(axis_of(both, "variant").values) == 3
    assert axis_of(both, "optim.learning_rate", alone=False).field == "learning_rate"


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("learnin_rate", r"no such field \(did you mean 'learning_rate'\?\)"),
        ("b1", r"b1 is 0\.9 in every run; runs of one cell differ in learning_rate"),
        ("precision", r"is 'float32' in every run"),
        ("fd_digits", "no such field"),
        ("features", "scores of another features are other scores"),
    ],
)
def test_what_is_no_axis_is_told_in_a_line(study, by, message):
    with pytest.raises(UserError, match=message):
        axis_of(study, by)


def test_rows_are_chosen_by_any_field_of_a_run(both):
    chosen = both.where(
        "ema_decay == 0.9999 and optim_b1 == 0.9" if "optim_b1" in both.table else "ema_decay == 0.9999"
    )
    assert len(chosen.table) == len(both.table)
    assert list(chosen.table.columns) == list(both.table.columns)
    assert both.where("ema_decay < 0.9").table.empty


def test_a_field_that_follows_from_another_is_no_axis_of_its_own(tmp_path):
    """The objective decides the channels and, run by run, the rate; the rate alone decides nothing else."""
    eps = tuple(
        replace(
            run, objective=ObjectiveConfig("eps"), model=replace(run.model, learn_sigma=False), optim=OptimConfig(2e-4)
        )
        for run in FEW
    )
    study = collect(write_study(tmp_path / "demo", (*FEW, *eps)))
    assert {"objective", "learn_sigma", "learning_rate"} <= set(study.apart)
    assert fields_apart(study) == ["objective"]


def test_differences_are_those_of_paired_t_tests(study):
    """One cell: the t test of its seeds. Several cells of one seed each: that of the cells. Both: the spread within cells."""
    table = study.table.query("step == 1000")
    logs = np.log(table.pivot_table(index=["block", "size", "seed"], columns="learning_rate", values="fd_digits"))
    for where, rows in (
        ("block == 'adaln' and size == 'S'", logs.loc[("adaln", "S")]),
        ("seed == 1", logs.xs(1, level="seed")),
    ):
        (found,) = effect(axis_of(study.where(where))).differences
        expected = stats.ttest_rel(rows[1e-3], rows[1e-4]).confidence_interval(0.95)
        assert np.log([found.interval.low, found.interval.high]) == pytest.approx(list(expected), rel=1e-9)
        assert found.pairs == len(rows)
    (found,) = effect(axis_of(study)).differences
    apart = logs[1e-3] - logs[1e-4]
    within = apart - apart.groupby(level=["block", "size"]).transform("mean")
    half = stats.t.ppf(0.975, 12) * np.sqrt((within**2).sum() / 12 / 18)  # 18 pairs in 6 cells of 3
    assert np.log([found.interval.low, found.interval.high]) == pytest.approx(
        [apart.mean() - half, apart.mean() + half]
    )
    assert (found.cells, found.pairs) == (6, 18)


def test_the_sentence_tells_whether_the_order_of_blocks_holds(study):
    lines = effect(axis_of(study)).sentences
    assert lines[0].startswith("Which block leads depends on learning_rate: ")
    assert "adaLN at 0.001" in lines[0]
    assert "fd_digits at learning_rate 0.001 is" in lines[1]


def test_a_block_ahead_at_every_value_is_said_with_means_and_deviations(tmp_path):
    small = tuple(run for run in (*SLOW, *DROPPED) if run.model.size == "S")
    study = collect(write_study(tmp_path / "demo", small, images=False))
    means = study.over_seeds().query("step == 1000").set_index(["block", "class_dropout_prob"])["fd_digits"]
    line = effect(axis_of(study)).sentences[0]
    assert line.startswith("adaLN-Zero stays ahead at both values of class_dropout_prob: fd_digits ")
    for dropout in (0.1, 0.3):
        assert f"{means['adaln_zero', dropout]:.2f} ± " in line
        assert f"at {dropout}" in line


def flowing(sampler, steps=32):
    return tuple(
        replace(
            run,
            objective=ObjectiveConfig("flow"),
            evaluations=tuple(replace(one, sampler=sampler, sampling_steps=steps) for one in run.evaluations),
        )
        for run in FEW
    )


def test_an_objective_has_samplers_of_its_own_and_that_is_said(tmp_path):
    study = collect(write_study(tmp_path / "demo", (*FEW, *flowing("euler"))))
    axis = axis_of(study)
    assert (axis.field, axis.values) == ("objective", ("ddpm", "flow"))
    found = effect(axis)
    assert set(found.means["objective"]) == {"ddpm", "flow"}
    assert "protocols that differ in sampler ddpm and euler" in found.sentences[-1]


def test_other_protocols_never_share_an_axis(tmp_path):
    other = collect(write_study(tmp_path / "steps", (*FEW, *flowing("euler", steps=16))))
    with pytest.raises(UserError, match="differ in sampling_steps 32 and 16"):
        effect(axis_of(other))
    runs = tuple(
        replace(run, evaluations=tuple(replace(e, sampler="ddim") for e in run.evaluations)) for run in FAST[::3]
    )
    mixed = collect(write_study(tmp_path / "mixed", (*FEW, *runs)))
    with pytest.raises(UserError, match="differ in sampler ddpm and ddim"):
        effect(axis_of(mixed))


def test_a_sampler_is_an_axis_of_runs_scored_with_both(tmp_path):
    runs = tuple(
        replace(run, evaluations=(*run.evaluations, replace(run.evaluations[-1], sampler="ddim"))) for run in FEW
    )
    axis = axis_of(collect(write_study(tmp_path / "demo", runs)), "sampler")
    assert (axis.values, axis.parts) == (("ddpm", "ddim"), ("sampler", "sampler_options", "sampler_source"))
    assert effect(axis).differences[0].pairs == len(runs)
    (folder,) = {
        one.parent.name
        for outcome in draw_all(axis.study, tmp_path / "out", ["fig5"], by="sampler")
        for one in outcome.files
    } - {"sampler=ddpm"}
    assert folder == "sampler=ddim"


def test_figures_of_a_field_and_of_each_value_are_drawn_and_verified(tmp_path, study):
    drawn = {one.name: one for one in draw_all(study, tmp_path / "out", ["by", "fig5"])}
    assert list(drawn) == ["by", "learning_rate=0.0001/fig5", "learning_rate=0.001/fig5"]
    assert all(file.is_file() for one in drawn.values() for file in one.files)
    sidecar = json.loads((tmp_path / "out" / "learning_rate=0.001" / "fig5.json").read_text())
    assert sidecar["where"] == "learning_rate == 0.001"
    assert {row["run"] for row in sidecar["rows"]} <= {run.run for run in FAST}
    assert [one.stale for one in verify(study, tmp_path / "out", ["by", "fig5"])] == [None] * 3
    (tmp_path / "out" / "learning_rate=0.001" / "fig5.png").write_bytes(b"")
    stale = {one.name for one in verify(study, tmp_path / "out", ["by", "fig5"]) if one.stale}
    assert stale == {"learning_rate=0.001/fig5"}


def test_many_cells_are_drawn_over_their_gflops(study, monkeypatch):
    monkeypatch.setattr("analysis.figures.by._FEW", 2)
    figure = drawn(study, "by", STYLES["paper"]).figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["adaLN", "adaLN-Zero"]
    assert len(figure.axes[0].get_lines()) == 2


def test_every_verb_takes_the_axis(study, capsys):
    folder = str(study.folder)

    def told(*arguments):
        assert main(list(arguments)) == 0
        return capsys.readouterr()

    found = json.loads(told("fit", folder, "--json", "--replicates", "100").out)
    assert [one["value"] for one in found["values"]] == [1e-4, 1e-3]
    assert found["differences"][0]["pairs"] == 18
    assert "learning_rate=0.001\n######" in told("fit", folder, "--replicates", "100").out
    assert [one["value"] for one in json.loads(told("advise", folder, "--json").out)["values"]] == [1e-4, 1e-3]
    rows = json.loads(
        told("results", folder, "--over-seeds", "--json", "--where", "step == 1000", "--by", "learning_rate").out
    )
    assert [(row["size"], row["learning_rate"]) for row in rows[:4]] == [
        ("S", 1e-4),
        ("S", 1e-3),
        ("B", 1e-4),
        ("B", 1e-3),
    ]
    rows = json.loads(told("compare", folder, "--by", "learning_rate", "--json").out)
    assert {(row["learning_rate"], row["against_learning_rate"]) for row in rows} == {(1e-3, 1e-4)}
    assert {row["block"] for row in rows if row["verdict"] == "better"} == {"adaln"}
    rows = json.loads(told("compare", folder, "--by", "block", "--where", "learning_rate == 0.0001", "--json").out)
    assert {(row["block"], row["against_block"], row["size"]) for row in rows} == {
        ("adaln", "adaln_zero", size) for size in "SBL"
    }
    shown = told("status", folder).out
    assert "learning_rate 0.001: 18 of 18 done" in shown
    assert "learning_rate" in shown.splitlines()[0]
    assert "precision float32: 36 of 36 done" in told("status", folder, "--by", "precision").out.replace("train_", "")
    pages = told("report", folder).out.split()
    assert [page.rpartition("/")[2] for page in pages] == [
        "report.html",
        "report-learning_rate=0.0001.html",
        "report-learning_rate=0.001.html",
    ]
    assert "Which block leads depends on learning_rate" in (study.folder / "report.html").read_text()


def test_without_a_field_verbs_that_need_one_say_how_to_choose(both, capsys):
    for verb in ("figures", "fit", "report", "advise"):
        assert main([verb, str(both.folder)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "differ in class_dropout_prob and learning_rate: choose what to group by" in err
    assert main(["status", str(both.folder), "--by", "learnin_rate"]) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err
