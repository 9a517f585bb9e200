"""What is printed steers no terminal, whatever a study's files and the command line hold."""

import contextlib
import json
import re
import sys

import pytest
from synthetic_study import cells, write_study

from dit.cli import main
from dit.hosts.terminal import screened, steer
from dit.store.study import RunStore

STEERING = "\x1b[31m\x9b2J\x07\u202e\x7f\r"


@pytest.mark.parametrize(
    "words",
    [
        ["results", "DIR"],
        ["results", "DIR", "--format", "csv"],
        ["results", "DIR", "--json"],
        ["results", "DIR", "--format", "markdown"],
        ["results", "DIR", "--where", STEERING],
        ["results", "DIR", "--sort", STEERING],
        ["results", "DIR" + STEERING],
        ["status", "DIR"],
        ["status", "DIR", "--json"],
        ["sql", "DIR", "SELECT * FROM results"],
        ["compare", "DIR", "DIR"],
        ["fit", "DIR"],
        ["figures", "DIR", "--verify", "--only", "fig8"],
        ["figures", "DIR", "--only", STEERING],
        ["report", "DIR", "--out", "DIR/page.html"],
        ["worker", "--study", "DIR", "--cell", STEERING],
        ["worker", "--study", "DIR", "--mesh", STEERING],
        ["doctor", "DIR"],
        [STEERING],
        ["plan", f"{STEERING}.py"],
    ],
)
def test_no_verb_sends_a_terminal_what_a_strangers_files_hold(tmp_path, words, capsys):
    """Control letters in the study's name, doc and sizes, in reasons, in a metric's and so a column's name, in sidecars and options."""
    first, second = cells(blocks=("adaln",), sizes=("S", "B"), patches=(4,), sampling=())
    folder = write_study(tmp_path / "out", (first, second))
    value = json.loads((folder / "study.json").read_text())
    value |= {"study": f"mine{STEERING}", "doc": STEERING}
    (folder / "study.json").write_text(json.dumps(value))
    RunStore(folder, first).set_status("failed", step=1, attempt=1, reason=f"gone{STEERING}")
    for path in RunStore(folder, second).path.glob("evals/*.json"):
        record = json.loads(path.read_text())
        record["row"] |= {f"fd_{STEERING}": 7.0, "source": STEERING, "citation": STEERING}
        path.write_text(json.dumps(record))
    (folder / "figures").mkdir()
    (folder / "figures" / "fig8.json").write_text(json.dumps({"where": STEERING}))
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main([word.replace("DIR", str(folder)) for word in words])
    out, err = capsys.readouterr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + err)
    assert out + err
    assert not err.startswith("Traceback")


def test_own_sequences_reach_the_terminal_and_names_that_are_no_text_are_shown(capsys):
    with screened():
        steer(sys.stdout, "\x1b[K")
        print("a\x1b[Kb\tc", "\udcff")
        sys.stderr.writelines(["x\x9b", "\n"])
    assert capsys.readouterr() == ("\x1b[Ka?[Kb\tc ?\n", "x?\n")
