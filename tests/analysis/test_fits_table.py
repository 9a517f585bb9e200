"""Any table of (N, D or C, score): the file's numbers are kept, planted laws and optima come out, and bad input is one line."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.fits.fit import fit_law
from analysis.fits.optimum import optimum
from analysis.fits.table import observe_table
from dit.cli import main

E, A, B, ALPHA, BETA = 1.8172, 477.8, 2143.0, 0.3473, 0.3672
MAP = {"params": "N", "images_seen": "D", "score": "loss"}
OPTIONS = [part for name, column in MAP.items() for part in ("--map", f"{name}={column}")]


def table(sd=0.0, bad=0):
    """Points of the published law of language models: eight sizes, six amounts of data."""
    rng = np.random.default_rng(0)
    n, d = (one.ravel() for one in np.meshgrid(np.geomspace(7e7, 1e10, 8), np.geomspace(1e9, 5e11, 6), indexing="ij"))
    loss = (E + A * n**-ALPHA + B * d**-BETA) * np.exp(sd * rng.standard_normal(len(n)))
    loss[:bad] *= 1.3
    return pd.DataFrame({"N": n, "D": d, "loss": loss, "flops": 6 * n * d, "kind": ["a", "b"] * (len(n) // 2)})


def test_a_planted_law_comes_out_of_a_frame_under_either_loss():
    for loss in ("squares", "huber"):
        law = fit_law(observe_table(table(), MAP), "params+images", loss=loss, replicates=0)
        assert [one.value for one in law.parameters] == pytest.approx([E, A, B, ALPHA, BETA], rel=1e-4)


def test_the_loss_of_hoffmann_et_al_is_not_moved_by_a_broken_row(tmp_path, capsys):
    table(bad=1).to_csv(tmp_path / "runs.csv", index=False)
    command = ["fit", str(tmp_path / "runs.csv"), *OPTIONS, "--form", "chinchilla", "--replicates", "100", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["value"] for one in found["parameters"]] == pytest.approx([E, A, B, ALPHA, BETA], rel=2e-2)


def test_the_optimum_is_the_closed_form_and_what_a_search_finds():
    law = fit_law(observe_table(table(0.002), MAP | {"train_gflops": "flops"}), "params+images", replicates=100)
    found = optimum(law)
    assert found.per_pair == pytest.approx(6) and found.params_exponent.value == pytest.approx(
        BETA / (ALPHA + BETA), abs=0.02
    )
    assert BETA / (ALPHA + BETA) in found.params_exponent.interval
    for one in found.budgets:
        n = np.geomspace(one.params / 10, one.params * 10, 4001)
        columns = {"params": n, "images_seen": one.train_gflops / 6 / n}
        scores = law.estimate.log_score(law.estimate.theta[None], columns)[0]
        assert one.params == pytest.approx(n[np.argmin(scores)], rel=2e-3) and one.params in one.params_interval
        assert one.params * one.images_seen * 6 == pytest.approx(one.train_gflops)


def test_the_files_numbers_are_kept_and_compute_stands_in_for_data():
    kept = observe_table(table(), MAP | {"train_gflops": "flops"})
    assert kept.column("params") == pytest.approx(table()["N"]) and kept.column("train_gflops") == pytest.approx(
        table()["flops"]
    )
    by_compute = observe_table(table(), {"params": "N", "train_gflops": "flops", "score": "loss"})
    assert by_compute.column("images_seen") == pytest.approx(table()["D"])


def test_the_command_fits_a_table_and_its_groups(tmp_path, capsys):
    table(0.002).to_csv(tmp_path / "runs.csv", index=False)
    command = ["fit", str(tmp_path / "runs.csv"), *OPTIONS, "--replicates", "100"]
    assert main([*command, "--where", "N < 2e9"]) == 0
    printed = capsys.readouterr().out
    assert "params+images: L = E + A N^-a + B D^-b" in printed and "Best N and D for a budget" in printed
    assert "not in the table: 6 N D" in printed and "as the table counts them" in printed and "not recorded" in printed
    assert main([*command, "--by", "kind", "--form", "chinchilla"]) == 0
    assert capsys.readouterr().out.count("params+images") == 2


def test_isoflop_minima_are_local_over_many_sizes():
    """Sixteen sizes at even budgets: the planted exponent comes out, where a cubic through all sizes would not."""
    n, c = (one.ravel() for one in np.meshgrid(np.geomspace(5e6, 3e10, 16), np.geomspace(1e18, 1e21, 7), indexing="ij"))
    d = c / (6 * n)
    frame = pd.DataFrame({"params": n, "images_seen": d, "train_gflops": c, "score": E + A * n**-ALPHA + B * d**-BETA})
    from analysis.fits.isoflop import isoflop

    found = isoflop(observe_table(frame, {}), "table", 1, budgets=7)
    assert found.exponent.value == pytest.approx(BETA / (ALPHA + BETA), abs=0.01)


@pytest.mark.parametrize(
    "change, options, said",
    [
        (lambda t: t, ["--map", "params=M"], "the table has no column 'M'; its columns are N, D, loss"),
        (lambda t: t, ["--map", "score=los"], "no column 'los' (did you mean 'loss'?)"),
        (
            lambda t: t,
            ["--map", "param=N"],
            "expected one of params, images_seen, train_gflops, score, seed (did you mean 'params'?)",
        ),
        (lambda t: t.assign(N=-t["N"]), OPTIONS, "params in row 1 (column 'N') is -70000000.0"),
        (lambda t: t.assign(D=0), OPTIONS, "images_seen in row 1 (column 'D') is 0"),
        (lambda t: t.assign(D="many"), OPTIONS, "images_seen in row 1 (column 'D') is many"),
        (
            lambda t: t[t["N"] < 1.5e8],
            [*OPTIONS, "--form", "chinchilla"],
            "params+images needs 3 of N (params), there are 2, 1 more",
        ),
        (lambda t: t, ["--map", "score=loss"], "a law needs N and one of D and C"),
        (lambda t: t.assign(loss=None), OPTIONS, "no row of the table has a score in column 'loss'"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, capsys, change, options, said):
    change(table()).to_csv(tmp_path / "runs.csv", index=False)
    assert main(["fit", str(tmp_path / "runs.csv"), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_table_that_is_not_there_and_a_study_with_columns(tmp_path, capsys):
    assert main(["fit", str(tmp_path / "none.csv"), *OPTIONS]) == 2
    assert "no file" in capsys.readouterr().err
    assert main(["fit", "paper", "--map", "params=N"]) == 2
    assert "are for a table" in capsys.readouterr().err
