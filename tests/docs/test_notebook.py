"""The notebook runs, and says what the paper says."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "paper.ipynb"


def test_every_cell_of_the_notebook_runs(capsys, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names: dict = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert "12 models, r = -0.93" in printed
    assert "DiT-XL/2: 675 M parameters, 118.64 Gflops" in printed


def test_the_public_functions(tmp_path):
    import dit
    from dit.errors import UserError

    assert dit.flops("adaln_zero", "B", 4)["gflops"] == pytest.approx(5.56, abs=0.01)
    assert {path.suffix for path in dit.figures("paper", tmp_path, ["fig8"])} >= {".png", ".pdf"}
    with pytest.raises(UserError, match="dataset"):
        dit.flops("adaln_zero", "B", 4, dataset="imagenet")
