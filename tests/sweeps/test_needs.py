"""What a cell needs of a cluster: the study's word, the command line's over it, and slices by their vendors' names."""

import argparse

import pytest

from dit.cli import main
from dit.errors import UserError
from dit.store.study import load_study
from sweeps import engines
from sweeps.arguments import load
from sweeps.engine import Resources
from sweeps.engines import needs
from sweeps.study import declared_resources

STUDY = '''"""Two cells."""
from experiments.demo import runs as demo
def runs():
    return demo()[:2]
def resources(run):
    return {"hardware": "h200x8" if run.model.patch_size == 4 else "v5e-16", "cpus_per_host": 3, "slurm": {"time": 5}}
'''


def parsed(*options):
    parser = argparse.ArgumentParser()
    engines.declare(parser)
    return parser.parse_args(options)


class Run:
    """As much of a run as its needs depend on."""

    run = "a-cell"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e-8", ("tpu", "v5e", 1, 8, "2x4")),
        ("v5e-16", ("tpu", "v5e", 4, 4, "4x4")),
        ("v4-16", ("tpu", "v4", 2, 4, "2x2x2")),  # named by TensorCores, two to a chip
        ("h200x8", ("gpu", "h200", 1, 8, "")),
        ("h100x16", ("gpu", "h100", 2, 8, "")),
        ("cpu", ("cpu", "", 1, 0, "")),
    ],
)
def test_hardware_is_hosts_and_chips(name, expected):
    asked = needs.resources(parsed("--hardware", name), Run())
    assert (asked.platform, asked.accelerator, asked.hosts, asked.chips_per_host, asked.topology) == expected


def test_without_a_word_a_cell_takes_one_processor():
    assert needs.resources(parsed(), Run()) == Resources()


def test_the_study_says_it_cell_by_cell_and_options_win(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(STUDY)
    own = declared_resources(str(path))
    first, second = (own and needs.resources(parsed(), run, own) for run in study_runs(path))
    assert first == Resources("gpu", 1, 8, 3, "h200", "", 0.0, (("time", "5"),))
    assert second == Resources("tpu", 4, 4, 3, "v5e", "4x4", 0.0, (("time", "5"),))
    over = needs.resources(parsed("--hardware", "cpu", "--hosts", "2", "--memory-gb", "8"), study_runs(path)[0], own)
    assert over == Resources("cpu", 2, 0, 3, "", "", 8.0, (("time", "5"),))
    assert declared_resources("demo") is None
    path.write_text(STUDY.replace('"cpus_per_host": 3', '"cpus_per_host": 1 // 0'))
    with pytest.raises(UserError, match=r"two.py failed at line 6: ZeroDivisionError"):
        needs.resources(parsed(), study_runs(path)[0], declared_resources(str(path)))


def study_runs(path):
    from sweeps.study import declared

    return declared(str(path)).runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hardware", "v5e-7"], "v5e-7"),
        (["--hardware", "v5e-16", "--hosts", "2"], "v5e-16 has 4"),
        (["--hardware", "h200x8", "--gpus-per-host", "8"], "leave one out"),
        (["--gpus-per-host", "-1"], "chips_per_host is -1"),
        (["--memory-gb", "inf"], "memory_gb is inf"),
    ],
)
def test_what_no_cluster_can_give_is_named(options, message):
    with pytest.raises(UserError, match=message):
        needs.resources(parsed(*options), Run())


@pytest.mark.parametrize("value", [{"topology": "4by4"}, {"cpus_per_host": True}, {"slurm": []}, {"gpus": 1}, None])
def test_what_a_study_may_not_say_is_named_with_its_cell(value):
    with pytest.raises(UserError, match="a-cell"):
        needs.resources(parsed(), Run(), lambda run: value)


def test_a_study_can_be_declared_without_running_it(tmp_path, capsys):
    """What workers on plain hosts start from; it says how, in words that a shell takes as they are."""
    out = tmp_path / "a b"
    assert main(["sweep", "demo", "--out", str(out), "--declare", "--log-every", "7"]) == 0
    assert capsys.readouterr().err == f"declared: `dit worker --study '{out}'` on any hosts runs it\n"
    assert len(load_study(out).runs) == 48
    assert load(out).log_every == 7
    assert not (out / "runs").exists()
