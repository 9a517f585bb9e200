"""`dit plan --hardware`: the bill as a user reads it, as a script reads it, and what is refused."""

import csv
import io
import json

import pytest
from test_probes import write

from dit.cli import main
from dit.design import flops
from experiments import paper
from sweeps.hardware import cores


def run(*arguments):
    """Exit code of `dit plan` in this process."""
    try:
        return main(["plan", *arguments])
    except SystemExit as error:
        return error.code


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No compiled steps from elsewhere."""
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))


def test_the_bill_says_what_it_rests_on(capsys):
    assert run("paper", "--hardware", "v5e-8", "--precision", "bfloat16") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for said in (
        "Gflops count one multiply-add as one flop.",
        "FLOPs = 2 x exaflops",
        "v5e-8: 8 chips (2-D torus, 1600 Gbit/s a chip) on 1 host, 15.75 GiB a device for programs; mesh data=8,fsdp=1,tensor=1.",
        "Memory of 15 cells: counted, not compiled (analytic)",
        "Time of 15 cells: not measured; a stated 30.0% of peak (15.0% to 55.0%), from published rates.",
        "Price: 1.2 USD a chip and hour, as of 2025-07-01",
        "Total of 15 of 15 cells: 207 exaflops of training (414e18 FLOPs) and 42.11 of sampling",
    ):
        assert said in out
    table = out.split("\n\n")[0].splitlines()
    assert len(table) == 2 + 15
    assert "seed" not in table[0]


def test_scripts_get_every_figure_and_its_band(capsys):
    assert run("paper", "--hardware", "v5p-64", "--precision", "bfloat16", "--budget", "400usd", "--json") == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert "not measured" in err
    assert value["hardware"]["chips"] == 32
    assert value["hardware"]["price_as_of"] == "2025-07-01"
    assert len(value["cells"]) == value["total"]["cells"] == 15
    for cell, expected in zip(value["cells"], paper.runs()):
        assert cell["params"] == flops.params(expected.model)
        for name in ("step_ms", "hours", "chip_hours", "usd"):
            assert 0 < cell[f"{name}_low"] < cell[name] < cell[f"{name}_high"]
        assert cell["fits"] is True
        assert (cell["memory_from"], cell["time_from"]) == ("analytic", "stated")
        assert 0 < cell["memory_gib"] < cell["memory_limit_gib"] == 95.74
    chosen = [cell for cell in value["cells"] if cell["chosen"]]
    assert 0 < len(chosen) == value["chosen"]["cells"] < 15
    assert value["chosen"]["usd"] == pytest.approx(sum(cell["usd"] for cell in chosen))
    assert value["chosen"]["usd"] <= 400
    cheapest_left = min(cell["usd"] for cell in value["cells"] if not cell["chosen"])
    assert value["chosen"]["usd"] + cheapest_left > 400


def test_a_cell_that_does_not_fit_is_named_and_the_exit_code_is_2(capsys):
    assert run("paper", "--hardware", "v5e-8", "--remat", "none", "--where", "size == 'L'", "--json") == 2
    out, err = capsys.readouterr()
    cells = json.loads(out)["cells"]
    assert [cell["fits"] for cell in cells] == [True, False, False]
    assert json.loads(out)["total"]["cells"] == 1
    lines = [line for line in err.splitlines() if "does not fit" in line]
    assert len(lines) == 2
    assert lines[0].startswith("dit plan: adaln_zero-L-4-s0-")
    assert lines[0].endswith("GiB of 15.75")


def test_a_table_can_be_sorted_cut_and_exported(capsys):
    query = ("paper", "--hardware", "h200x8", "--where", "block == 'adaln_zero'")
    assert run(*query, "--sort", "usd", "--descending", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["usd"]) for row in rows] == sorted((float(row["usd"]) for row in rows), reverse=True)
    assert run(*query, "--columns", "size,usd", "--format", "markdown") == 0
    assert capsys.readouterr().out.startswith("| size   | usd ")
    assert run(*query, "--columns", "size,dollars") == 2
    assert "unknown column 'dollars': expected one of run, study" in capsys.readouterr().err


def test_time_comes_from_a_probe_when_there_is_one(tmp_path, capsys):
    cell = paper.runs()[3]
    write(tmp_path / "runs" / "tried", cell, [4000.0] * 3)
    query = (
        "paper",
        "--hardware",
        "v5e-8",
        "--probe",
        str(tmp_path / "runs" / "tried"),
        "--save-probes",
        str(tmp_path / "p.json"),
    )
    assert run(*query, "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [one["time_from"] for one in cells].count("probe") == 1
    assert cells[3]["step_ms"] == pytest.approx(1e3 * 256 / 4000)
    assert {one["time_from"] for one in cells} == {"probe", "other probes"}
    assert run("paper", "--hardware", "v5e-8", "--probe", str(tmp_path / "p.json"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["cells"] == cells
    assert run("paper", "--hardware", "v5e-8", "--probe", str(tmp_path / "p.json")) == 0
    assert "Time of 1 cells: measured: the median of logged images per second" in capsys.readouterr().out


def test_this_machine_is_hardware_too(capsys):
    assert run("demo", "--hardware", "cpu") == 0
    out = capsys.readouterr().out
    assert f"a stated {30 * cores()}e9 FLOP/s ({5 * cores()} to {60 * cores()}) of all cores" in out
    assert "Price: none known for cpu" in out
    assert f"cpu: this machine, {cores()} cores, " in out
    assert "USD" not in out


def test_prices_are_those_of_the_file_given(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("[v5e]\nusd = 0.6\nas_of = 2026-11-01\nsource = 'our contract'\n")
    query = ("paper", "--hardware", "v5e-8", "--json")
    assert run(*query) == 0
    listed = json.loads(capsys.readouterr().out)["total"]["usd"]
    assert run(*query, "--prices", str(tmp_path / "mine.toml")) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["total"]["usd"] == pytest.approx(listed / 2)
    assert (value["hardware"]["price_as_of"], value["hardware"]["price_source"]) == ("2026-11-01", "our contract")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "v5e-9"], "hardware 'v5e-9': expected v5e- and one of 1, 4, 8"),
        (["--hardware", "dgx"], "unknown hardware 'dgx'"),
        (["--hardware", "v5e-8", "--budget", "lots"], "budget 'lots': expected dollars, hours or chip-hours"),
        (["--hardware", "v5e-8", "--mesh", "data=4"], "takes 4 devices, v5e-8 has 8"),
        (["--hardware", "v5e-8", "--mesh", "rows=4"], "mesh 'rows=4': expected sizes of data, fsdp and tensor"),
        (["--hardware", "v5e-8", "--prices", "none.toml"], "no prices at none.toml"),
        (["--hardware", "v5e-8", "--probe", "nowhere"], "no probes at nowhere"),
        (["--hardware", "h100x8", "--verify-memory"], "cannot be had for h100x8: a GPU's compiler needs the GPU"),
        (["--hardware", "cpu", "--budget", "5usd"], "needs the chip's price"),
        (["--memory", "compiled"], "--memory needs --hardware"),
        (["--budget", "5usd"], "--budget needs --hardware"),
        (["--save-probes", "p.json"], "--save-probes needs --hardware"),
        (["--hardware", "v5e-8", "--save-probes", "p.json"], "--save-probes needs --probe DIR"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("paper", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("dit plan: ")
    assert message in err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
