"""`dit fit`: text and JSON of a study and of the paper; one protocol per fit; refusals in words."""

import json
from dataclasses import replace

import pytest
from synthetic_study import cells, evaluations, write_run, write_study

from analysis.fits.conclusions import conclude
from analysis.fits.fit import Refusal
from analysis.fits.summary import text
from analysis.results import collect
from dit.cli import main
from dit.store.study import Study, save_study

RUNS = cells(blocks=("adaln_zero", "adaln"), patches=(2, 1), sampling=(4, 8, 16, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("fit") / "study", RUNS, images=False)


@pytest.fixture(scope="module")
def found(folder):
    return conclude(collect(folder).where("step >= 600"), replicates=100)


def test_a_study_carries_every_conclusion(found):
    assert found.block == "adaln_zero" and found.laws[0].form == found.validation.chosen
    assert [one.block for one in found.blocks.multipliers] == ["adaln"]
    assert found.frontier.points and len(found.sampling.cells) == 4
    assert found.correlations.gflops_score.value < -0.8
    assert len(found.isoflops) == 2 and all(isinstance(one, Refusal) for one in found.isoflops)
    assert found.left_out and "never mixed in" in found.notes[0].text


def test_conclusions_are_json(found):
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["laws"][0]["parameters"] and "estimate" not in value["laws"][0]
    assert value["sampling"]["amplitude"]["value"] > 0 and value["methods"]["items"]


def test_the_text_has_every_section(found):
    printed = text(found)
    sections = ("Laws of block adaln_zero", "Forward validation", "Correlations", "Blocks", "Frontier", "isoFLOP")
    for section in (*sections, "Sampling steps", "Methods of the first law"):
        assert f"\n{section}\n{'=' * len(section)}\n" in printed
    assert "no sampling compute brings S/1 to XL/1" in printed and "unknown: no repeated seeds" in printed


def test_the_paper_as_json(capsys):
    assert main(["fit", "paper", "--json", "--replicates", "100"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["correlations"]["gflops_score"]["value"] == pytest.approx(-0.9298, abs=1e-4)
    assert value["sampling"]["reason"] == "no run was scored at several numbers of sampling steps"
    power = next(law for law in value["laws"] if law["form"] == "power+E")
    assert power["parameters"][0]["value"] is None and "at its bound" in power["parameters"][0]["said"]


def test_protocols_with_equal_claims_are_both_named(tmp_path, capsys):
    runs = cells(blocks=("adaln_zero",), patches=(1,), sampling=())
    two = tuple(
        replace(run, evaluations=(*evaluations(1000), *(replace(one, sampling_steps=8) for one in evaluations(1000))))
        for run in runs
    )
    save_study(tmp_path / "study", Study("demo", "Two protocols.", two))
    for run in two:
        write_run(tmp_path / "study", "demo", run, images=False)
    assert main(["fit", str(tmp_path / "study")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    keys = set(collect(tmp_path / "study").table["protocol"])
    assert len(keys) == 2 and all(key in line for key in keys) and "sampling_steps" in line and "--where" in line
    chosen = sorted(keys)[0]
    where = f"protocol == '{chosen}'"
    assert main(["fit", str(tmp_path / "study"), "--where", where, "--replicates", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == 0


@pytest.mark.parametrize(
    "options, said",
    [
        (["--replicates", "10"], "--replicates 10: expected 100 or more"),
        (["--block", "mlp"], "no score of block 'mlp': expected one of"),
        (["--where", "size == 'Q'"], "no score among the selected rows"),
    ],
)
def test_bad_options_are_one_line(capsys, options, said):
    assert main(["fit", "paper", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_single_cell_refuses_in_words(capsys):
    assert main(["fit", "paper", "--where", "run == 'DiT-S/2'"]) == 0
    printed = capsys.readouterr().out
    assert "too few levels" in printed and "a frontier needs two cells" in printed and "no form is chosen" in printed
