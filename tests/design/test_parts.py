"""Parts as records: identities that stay, sources that follow the code, names that are taken, and what is data alone."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from dit.design import parts
from dit.design.blocks import BLOCKS, Block, attention_and_mlp
from dit.design.config import DATASETS, RunConfig, model_config
from dit.design.data import Data
from dit.design.sources import source_of
from dit.errors import UserError
from sweeps.study import declared

IDENTITIES = json.loads((Path(__file__).parents[1] / "golden/identities.json").read_text())


@pytest.mark.parametrize("study", IDENTITIES)
def test_run_names_and_hashes_are_what_they_were(study):
    assert [run.run for run in declared(study).runs] == IDENTITIES[study]


def test_the_packages_parts_have_no_source_and_no_trace_in_an_identity():
    run = RunConfig(model_config("adaln", "S", 4, DATASETS["digits"], ladder="nano"), DATASETS["digits"], 1)
    assert {part.source for part in (*parts.builtin(Block).values(), *parts.builtin(Data).values())} == {""}
    assert "block_source" not in run.identity["model"] and "source" not in run.identity["data"]


STUDY = '''
"""A study."""
import functools
import numpy as np
from beside import SCALE, helper as other
import lib.deep

LIMIT = 3
UNUSED = 1
TABLE = {}
TABLE["one"] = 1

def used(x):
    """Docstring."""
    return x * LIMIT * SCALE + other(x) + lib.deep.DEPTH + TABLE["one"]

def make(config, rngs, compute):
    return used(config)

def factory(width):
    def inner(config, rngs, compute):
        return make(config, rngs, compute) + width
    return inner

class Maker:
    def __call__(self, config, rngs, compute):
        return make(config, rngs, compute)
'''
BESIDE = "SCALE = 2\nUNUSED = 5\ndef helper(x):\n    return x\n"


def source(folder, study=STUDY, beside=BESIDE, deep="DEPTH = 1\n", make="make"):
    """The source of what `make` evaluates to in a study of these files."""
    folder.mkdir()
    (folder / "lib").mkdir()
    (folder / "lib/__init__.py").write_text("")
    for name, text in (("beside.py", beside), ("lib/deep.py", deep), ("study.py", study)):
        (folder / name).write_text(textwrap.dedent(text))
    code = (
        "import importlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "study = importlib.import_module('study'); from dit.design.sources import source_of\n"
        "print(source_of('x', {'make': eval(sys.argv[2], vars(study))}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), make], check=True, text=True, capture_output=True
    ).stdout.strip()


def test_a_source_follows_the_code_and_nothing_else(tmp_path):
    first = source(tmp_path / "a")
    same = STUDY.replace("return x * LIMIT", "# a comment\n    return x  *  LIMIT").replace("UNUSED = 1", "UNUSED = 2")
    assert source(tmp_path / "b", same.replace("Docstring", "Other words")) == first
    assert source(tmp_path / "c", beside=BESIDE.replace("UNUSED = 5", "UNUSED = 6")) == first
    for number, changed in enumerate(
        [
            {"study": STUDY.replace("LIMIT = 3", "LIMIT = 4")},
            {"study": STUDY.replace('TABLE["one"] = 1', 'TABLE["one"] = 2')},
            {"study": STUDY.replace("return used(config)", "return used(config) + 1")},
            {"beside": BESIDE.replace("SCALE = 2", "SCALE = 3")},
            {"beside": BESIDE.replace("return x", "return -x")},
            {"deep": "DEPTH = 2\n"},
        ]
    ):
        assert source(tmp_path / f"changed-{number}", **changed) != first, changed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("factory(3)", "factory(4)"),
        ("functools.partial(make, 1)", "functools.partial(make, 2)"),
        ("Maker()", "Maker"),
    ],
)
def test_closures_and_partials_are_told_apart(tmp_path, one, other):
    first, second = source(tmp_path / "a", make=one), source(tmp_path / "b", make=other)
    assert first != second == source(tmp_path / "c", make=other)
    assert source(tmp_path / "d", STUDY.replace("LIMIT = 3", "LIMIT = 4"), make=one) != first


def test_a_lambda_is_its_own_code():
    one = source_of("x", {"f": lambda x: x + 1})
    other = source_of("x", {"f": lambda x: x + 2})
    assert one != other


def test_what_has_no_source_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"block 'x' rests on .*: make it a constant or a function of the study's file"):
        source_of("block 'x'", {"make": iter([])})


def a_block(name="gated", make="dit.model.blocks:AdaLNBlock", **more):
    return Block(name, make, attention_and_mlp(modulation=2), "sum", "zero", **({"label": "Gated"} | more))


def test_a_block_of_ones_own_enters_the_identity_with_its_source():
    with parts.of_a_study():
        block = a_block()
        model = model_config("gated", "S", 4, DATASETS["digits"], ladder="nano")
    run = RunConfig(model, DATASETS["digits"], 1)
    assert len(block.source) >= 12 and run.identity["model"]["block_source"] == block.source
    with parts.of_a_study():
        assert a_block(label="other", colour="#000000").source == block.source
    with parts.of_a_study():
        changed = a_block(make="dit.model.blocks:AdaLNZeroBlock")
        other = RunConfig(model_config("gated", "S", 4, DATASETS["digits"], ladder="nano"), DATASETS["digits"], 1)
    assert changed.source != block.source and other.hash != run.hash
    with pytest.raises(UserError, match=r"unknown block 'gatd': expected one of in_context"), parts.of_a_study():
        model_config("gatd", "S", 4, DATASETS["digits"], ladder="nano")


def test_a_name_that_is_taken_is_refused_in_a_line():
    with (
        parts.of_a_study(),
        pytest.raises(UserError, match="block 'adaln' is one of the package's own: choose another"),
    ):
        a_block("adaln")
    with parts.of_a_study(), pytest.raises(UserError, match="block 'gated' is made twice in the study's file"):
        a_block(), a_block(label="again")


def test_a_part_that_was_read_is_data_and_refuses_to_run():
    data = {"kind": "Block", "name": "read", "source": "0" * 16, "label": "Read", "colour": "", "condition": "sum"}
    block = parts.known(Block, {**data, "final": "zero", "marker": "o", "dash": [0, 1, 1]})
    assert (block.label, block.dash, parts.named(Block, "read", "0" * 16)) == ("Read", (0, 1, 1), block)
    with pytest.raises(UserError, match="block 'read' is code of the study's own file, which only sweep, worker"):
        parts.load(block.make)(None, None, None)
    with pytest.raises(UserError, match="not a block of this version"):
        parts.known(Block, {**data, "mystery": 1, "name": "other"})
    with pytest.raises(UserError, match=r"block 'read' \(1\) is of a study's own file"):
        parts.named(Block, "read", "1")
    assert "read" not in BLOCKS


def pixels(size=8, channels=3, count=6, dtype=np.uint8):
    return np.zeros((count, size, size, channels), dtype), np.arange(count) % 2


def test_a_data_set_of_ones_own_is_its_content():
    images, labels = pixels()
    with parts.of_a_study():
        one = Data("spots", 8, 3, 2, lambda: (images, labels))
    other_images = images.copy()
    other_images[0, 0, 0, 0] = 1
    with parts.of_a_study():
        other = Data("spots", 8, 3, 2, lambda: (other_images, labels))
    assert one.config.source == one.source != other.source and not one.config.is_latent


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: (pixels(9)[0], pixels()[1]), r"images are uint8 \(6, 9, 9, 3\), expected uint8 \(number, 8, 8, 3\)"),
        (lambda: pixels(dtype=np.float32), r"images are float32"),
        (lambda: (pixels()[0], np.full(6, 2)), "label 2 of image 0 is none of its classes, 0 to 1"),
        (lambda: (pixels()[0], np.full(6, np.nan)), "label nan of image 0 is none of its classes"),
        (lambda: (pixels()[0], np.zeros(5, int)), r"labels are int64 \(5,\), expected a whole number for each of 6"),
        (lambda: pixels()[0], "load"),
    ],
)
def test_bad_pixels_are_refused_in_a_line(made, message):
    with parts.of_a_study(), pytest.raises(UserError, match=message):
        Data("spots", 8, 3, 2, made)


def test_pixels_come_from_folders_and_archives(tmp_path):
    from PIL import Image

    for number, colour in enumerate(("red", "blue", "red", "blue")):
        folder = tmp_path / f"tree/{colour}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), colour).save(folder / f"{number}.png")
    images, labels = pixels()
    np.savez(tmp_path / "pixels.npz", images=images, labels=labels)
    with parts.of_a_study():
        tree = Data.tree("colours", tmp_path / "tree", 8)
        archive = Data.npz("archive", tmp_path / "pixels.npz", 8, 3, 2)
    assert (tree.num_classes, tree.channels) == (2, 3)
    found, numbers = tree.load()
    assert (
        numbers.tolist() == [0, 0, 1, 1]
        and found[0, 0, 0].tolist() == [0, 0, 255]
        and found[3, 0, 0].tolist() == [255, 0, 0]
    )
    (tmp_path / "tree").rename(tmp_path / "moved")
    with parts.of_a_study():
        assert Data.tree("colours", tmp_path / "moved", 8).source == tree.source
        with pytest.raises(UserError, match="no folder of images at"):
            Data.tree("gone", tmp_path / "tree", 8)
    assert archive.source not in ("", tree.source)
