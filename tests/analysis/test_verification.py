"""`dit figures --verify`: fresh figures pass, and each way of being stale is named."""

import json
import shutil
from dataclasses import replace

import pytest
from synthetic_study import cells, score_of, write_run, write_study

from analysis import provenance
from analysis.figures import verification
from analysis.figures.registry import draw_all
from analysis.figures.verification import verify
from analysis.results import collect
from dit.cli import main
from dit.errors import UserError
from dit.store.study import RunStore, read_json, write_json

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=(), steps=100)
DRAWN = ["fig8", "fig13"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study") / "demo", RUNS)
    list(draw_all(collect(folder), folder / "figures", DRAWN))
    return folder


@pytest.fixture
def study(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "demo")


def stale(folder, only=DRAWN, style="paper"):
    return {one.name: one.stale for one in verify(collect(folder), folder / "figures", only, style) if one.stale}


def test_fresh_figures_pass(study, capsys):
    assert main(["figures", str(study), "--verify", "--only", "fig8,fig13"]) == 0
    assert capsys.readouterr().out == "fig8 is up to date\nfig13 is up to date\n"


def test_a_changed_score_makes_its_figures_stale_and_names_the_run(study, capsys):
    run = RUNS[1]
    path = RunStore(study, run).evaluation_path(run.evaluations[4])
    value = read_json(path)
    value["row"]["fd_digits"] = score_of(run, run.evaluations[4]) + 1e-9
    write_json(path, value)
    assert main(["figures", str(study), "--verify", "--only", "fig8,fig13"]) == 1
    out, err = capsys.readouterr()
    assert out == "fig13 is up to date\n"
    assert "fig8 is stale: 2 rows behind it differ" in err
    assert run.run in err


def test_a_run_that_was_added_or_logged_more_is_seen(study):
    path = RunStore(study, RUNS[0]).path / "metrics" / "0001.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 110, "loss": 0.2}) + "\n")
    assert "1 rows behind it differ" in stale(study)["fig13"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace('"loss": ', '"loss": 1'), *lines[1:-1]]) + "\n")
    assert "1 rows behind it differ" in stale(study)["fig13"]  # a changed row breaks its chain: the run is left out


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "fig8.png").write_bytes(b"x"), "fig8.png was changed after it was drawn"),
        (lambda folder: (folder / "fig8.pdf").unlink(), "fig8.pdf is missing"),
        (lambda folder: (folder / "fig8.json").unlink(), "fig8.json is missing"),
        (lambda folder: [path.unlink() for path in folder.glob("fig8.*")], "it has not been drawn"),
        (lambda folder: _edit(folder / "fig8.json", "rows", []), "the rows in its sidecar were changed"),
        (lambda folder: _edit(folder / "fig8.json", "style", "talk"), "it was drawn in style talk, not paper"),
        (lambda folder: _edit(folder / "fig8.json", "code_sha256", "0"), "the code that draws it has changed"),
    ],
)
def test_an_edited_or_missing_file_is_named(study, harm, said):
    harm(study / "figures")
    assert stale(study, ["fig8"]) == {"fig8": said}


@pytest.mark.parametrize(
    "where",
    [
        "run.to_pickle.__func__.__globals__.__getitem__('sys').modules.__getitem__('os').mkdir('{mark}') == 0",
        "run.to_csv('{mark}') == 0",
        "@pd.eval('1') == 1",
    ],
)
def test_the_filter_in_a_strangers_sidecar_is_not_run(study, tmp_path, capsys, where):
    mark = tmp_path / "executed"
    _edit(study / "figures" / "fig8.json", "where", where.format(mark=mark))
    assert main(["figures", str(study), "--verify", "--only", "fig8"]) == 2
    assert "does not parse at character" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("where", 7),
        ("where", ["size"]),
        ("files_sha256", {"../../x": ""}),
        ("files_sha256", {"/etc/passwd": ""}),
        ("files_sha256", []),
        ("rows", [7]),
        ("runs", [{}]),
        ("protocols", "x"),
    ],
)
def test_a_sidecar_of_other_kinds_is_none(study, key, value):
    _edit(study / "figures" / "fig8.json", key, value)
    assert stale(study, ["fig8"]) == {"fig8": "fig8.json is no sidecar of this version"}


def _edit(path, key, value):
    write_json(path, {**read_json(path), key: value})


def test_a_change_in_the_code_that_draws_a_figure_makes_that_one_stale(study, monkeypatch):
    source = provenance._source
    provenance_of = {"analysis.figures.loss": (b"changed", source("analysis.figures.loss")[1])}
    monkeypatch.setattr(provenance, "_source", lambda module: provenance_of.get(module) or source(module))
    assert stale(study) == {"fig13": "the code that draws it has changed"}


def test_the_code_behind_a_figure_is_what_it_imports_of_the_analysis_less_what_reads_rows():
    seen = []
    source = provenance._source
    provenance.code_digest("analysis.figures.loss")
    waiting = ["analysis.figures.loss"]
    while waiting:
        seen.append(waiting.pop())
        waiting += [name for name in source(seen[-1])[1] if name not in seen and name not in provenance._READERS]
    assert {"analysis.figures.drawing", "analysis.style", "analysis.protocols"} <= set(seen)
    assert not {"analysis.results", "analysis.figures.compute", "analysis.report.page"} & set(seen)


def test_a_figure_is_verified_for_the_rows_it_was_drawn_from(study):
    list(draw_all(collect(study), study / "figures", ["fig8"], where="patch_size == 4 or size == 'S'"))
    assert stale(study, ["fig8"]) == {}
    _edit(study / "figures" / "fig8.json", "where", None)
    assert "differ from those on record" in stale(study, ["fig8"])["fig8"]


def test_another_configuration_of_a_run_is_seen(study):
    results = collect(study)
    changed = replace(results, identities={**results.identities, RUNS[0].run: "f" * 12})
    verdicts = {one.name: one.stale for one in verify(changed, study / "figures", ["fig8"])}
    assert verdicts == {"fig8": f"run {RUNS[0].run} has another configuration now"}


def test_a_figure_that_the_study_does_not_carry_is_no_fault(study):
    assert [one for one in verify(collect(study), study / "figures", ["fig10"]) if one.stale] == []


def test_a_talk_style_is_drawn_and_verified_in_a_folder_of_its_own(study, capsys):
    assert main(["figures", str(study), "--style", "talk", "--only", "fig8"]) == 0
    assert main(["figures", str(study), "--style", "talk", "--only", "fig8", "--verify"]) == 0
    assert "figures/talk/fig8.png" in capsys.readouterr().out
    paper, talk = ((study / "figures" / part / "fig8.png").stat().st_size for part in ("", "talk"))
    assert paper != talk


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify", "--where", "size == 'S'"], "--where does not go with --verify"),
        (["--verify", "--only", "fig99"], "unknown figure 'fig99'"),
        (["--verify", "--out", "nowhere"], "no figures in nowhere"),
    ],
)
def test_bad_input_is_one_line(study, capsys, arguments, message):
    assert main(["figures", str(study), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_style_is_an_error(study, tmp_path):
    for call in (draw_all, verify):
        with pytest.raises(UserError, match="unknown style 'poster': expected one of paper, talk"):
            list(call(collect(study), study / "figures", DRAWN, "poster"))


def test_a_new_run_is_drawn_or_stale(study):
    more = cells(blocks=("adaln_zero",), sizes=("L",), patches=(4,), sampling=(), steps=100)
    write_study(study, (*RUNS, *more))
    write_run(study, "demo", more[0])
    assert set(stale(study)) == set(DRAWN)
    assert verification.Verdict("fig8").stale is None
