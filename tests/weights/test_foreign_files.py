"""Weights as other people save them: under other names, behind prefixes, in other formats, with things beside them, or made to harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_torch_pickle import Global, StorageOf, write_archive

from dit.errors import UserError
from dit.train.restore import is_checkpoint
from dit.weights import torch_legacy
from dit.weights.torch_pickle import find_weights, read_part, read_state_dict, read_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_own"
ANCHORS = ("x_embedder.proj.weight", "pos_embed.proj.weight")
NAMES = ("pos_embed", "x_embedder.proj.weight", "x_embedder.proj.bias", "final_layer.linear.weight")


def one(key: str) -> Global:
    return Global("torch._utils", "_rebuild_tensor_v2", StorageOf(key), 0, (4,), (1,), False, None)


def state(key: str, prefix: str = "") -> dict[str, Global]:
    return {prefix + name: one(key) for name in NAMES}


STORAGES = {"raw": np.full(4, 1, np.float32), "mean": np.full(4, 2, np.float32), "other": np.full(4, 3, np.float32)}


def read(tmp_path: Path, value: object, key: str | None = None, anchors: tuple[str, ...] = ANCHORS):
    path = write_archive(tmp_path / "x.pt", value, STORAGES)
    tensors, part = read_part(path, anchors, key)
    values = {float(array[0]) for array in tensors.values()}
    assert len(values) == 1 and set(tensors) <= set(NAMES)
    return values.pop(), part


def test_pytorch_files_of_every_kind_hold_the_same_weights() -> None:
    """Written by PyTorch 2.13 from one state dict: the old format, a TPU's tensors, 8-bit floats, a sparse one, a subclass."""
    expected = read_tensors(GOLDEN / "legacy_flat.pt")
    assert torch_legacy.is_legacy(GOLDEN / "legacy_flat.pt") and len(expected) == 22
    for name in ("xla.pt", "sparse.pt", "subclass.pt"):
        found = read_tensors(GOLDEN / name, ANCHORS)
        assert found.keys() == expected.keys()
        for tensor in expected:
            np.testing.assert_array_equal(found[tensor], expected[tensor], err_msg=f"{name} {tensor}")
    for tensor, value in read_tensors(GOLDEN / "fp8_e4m3.pt", ANCHORS).items():
        assert value.dtype == ml_dtypes.float8_e4m3fn
        np.testing.assert_array_equal(value, expected[tensor].astype(ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize(
    "name",
    [
        "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema1", "ema_0.9999", "EMA", "modelEMA", "emaModel",
        "net_ema", "params_ema", "g_ema", "swa_model", "averaged_model", "shadow", "avg_model", "ema_weights", "polyak",
    ],
)  # fmt: skip
def test_averages_are_taken_under_any_usual_name(tmp_path: Path, name: str) -> None:
    for saved in (
        {"model": state("raw"), name: state("mean")},
        {name: state("mean"), "state_dict": state("raw"), "opt": {}},
    ):
        value, part = read(tmp_path, saved)
        assert value == 2 and f"took '{name}'" in part.note and "the averaged weights" in part.note
        assert "also there" in part.note and read(tmp_path, saved, part.label)[0] == 2
        assert read(tmp_path, saved, "model" if "model" in saved else "state_dict")[0] == 1


@pytest.mark.parametrize("name", ["schema", "cinema", "model", "weights", "teacher", "demand"])
def test_other_names_are_no_averages(tmp_path: Path, name: str) -> None:
    value, part = read(tmp_path, {name: state("raw"), "epoch": 3})
    assert value == 1 and "averaged" not in part.note


def test_averages_within_and_without_names(tmp_path: Path) -> None:
    shadow = {"model": state("raw"), "ema": {"decay": 0.99, "shadow": state("mean")}}
    assert read(tmp_path, shadow)[1].label == "ema.shadow"
    for names in (NAMES, NAMES[1:]):  # with and without the frozen positions
        listed = {"model": state("raw"), "ema": {"decay": 0.99, "shadow_params": [one("mean") for _ in names]}}
        assert read(tmp_path, listed)[0] == 2
    flat = {**state("raw", "online_model."), **state("mean", "ema_model."), "step": 3}
    assert read(tmp_path, flat)[1].label == "ema_model"
    assert read(tmp_path, {"ema": flat})[1].label == "ema.ema_model"
    lit = {f"model_ema.diffusion_model{name.replace('.', '')}": one("mean") for name in NAMES}
    whole = {"state_dict": {**state("raw", "model.diffusion_model."), **lit, "first_stage_model.x": one("other")}}
    assert read(tmp_path, whole)[0] == 2
    assert read(tmp_path, whole, "state_dict.model.diffusion_model")[0] == 1


def test_what_is_not_clear_is_asked(tmp_path: Path) -> None:
    two = {"model": state("raw"), "model_ema1": state("mean"), "model_ema2": state("other")}
    with pytest.raises(UserError, match="'model_ema1', 'model_ema2': choose one with --key"):
        read(tmp_path, two)
    assert read(tmp_path, two, "model_ema2")[0] == 3
    with pytest.raises(UserError, match="'first', 'second': choose one"):
        read(tmp_path, {"first": state("raw"), "second": state("mean")})
    unread = {"model": state("raw"), "ema": {"shadow_params": [one("mean")]}}
    with pytest.raises(UserError, match=r"'ema\.shadow_params' holds averaged weights that cannot be read"):
        read(tmp_path, unread)
    assert read(tmp_path, unread, "model")[0] == 1
    for empty in ({}, None, []):
        value, part = read(tmp_path, {"model": state("raw"), "ema": empty, "ema_decay": 0.99, "use_ema": True})
        assert value == 1 and part.note.endswith("its 'ema' is empty")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "diffusion_model.",
        "module._orig_mod.",
        "model.diffusion_model.",
        "a.b.c.d.",
    ],
)
def test_prefixes_of_wrappers_come_off(tmp_path: Path, prefix: str) -> None:
    for saved in (state("raw", prefix), {"state_dict": {**state("raw", prefix), "vae.x_embedder": one("other")}}):
        value, part = read(tmp_path, saved)
        assert value == 1 and f"'{prefix}' taken off their names" in part.note
    save_file({prefix + name: STORAGES["raw"] for name in NAMES}, tmp_path / "x.safetensors")
    assert set(read_tensors(tmp_path / "x.safetensors", ANCHORS)) == set(NAMES)


@pytest.mark.parametrize(
    "extra",
    [
        Global("numpy.core.multiarray", "scalar", 1), Global("pathlib", "PosixPath", "/", "data"), Global("__builtin__", "set", [1]),
        Global("torch", "Size", (1, 2)), Global("torch", "device", "cpu"), Global("collections", "defaultdict", 1), [1, {"a": (2,)}],
        Global("omegaconf.dictconfig", "DictConfig", {"lr": 1}), Global("__main__", "Args"), Global("datetime", "datetime", b"x"),
        Global("torch.optim.adamw", "AdamW", {}), Global("diffusion.gaussian_diffusion", "ModelMeanType", 1), {1, 2}, 10**30,
    ],
)  # fmt: skip
def test_extras_stand_by_and_nothing_of_them_runs(tmp_path: Path, extra: object) -> None:
    assert read(tmp_path, {"model": state("raw"), "ema": state("mean"), "extra": extra})[0] == 2
    assert read(tmp_path, {**state("raw"), "extra": extra})[0] == 1


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("subprocess", "run"), ("__builtin__", "eval"), ("nt", "x")]
)
def test_a_file_that_asks_to_run_programs_is_refused_as_a_whole(tmp_path: Path, module: str, name: str) -> None:
    with pytest.raises(UserError, match=f"asks to run {module}.{name}"):
        read(tmp_path, {"ema": state("mean"), "extra": Global(module, name, "touch x")})


def test_a_tensor_of_a_kind_that_is_not_read_is_named(tmp_path: Path) -> None:
    for kind in ("_rebuild_qtensor", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass"):
        saved = {**state("raw"), "blocks.0.attn.qkv.weight": Global("torch._utils", kind, 1)}
        with pytest.raises(UserError, match=rf"entry 'blocks\.0\.attn\.qkv\.weight' asks to run torch\._utils\.{kind}"):
            read(tmp_path, saved)


def write_safetensors(path: Path, code: str, size: float, data: bytes, name: str = "t", **changes: object) -> Path:
    """One tensor, byte by byte."""
    entry = {"dtype": code, "shape": [int(len(data) / size)], "data_offsets": [0, len(data)]} | changes
    header = json.dumps({name: entry, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("F8_E4M3", [1.0, -1.5, 448.0]),
        ("F8_E5M2", [1.0, -1.5, 57344.0]),
        ("F8_E8M0", [1.0, 2.0, 0.5]),
        ("I8", [1, -2, 3]),
    ],
)
def test_small_number_formats_read(tmp_path: Path, code: str, expected: list[float]) -> None:
    """Bytes worked out by hand from the formats' fields."""
    data = {"F8_E4M3": b"\x38\xbc\x7e", "F8_E5M2": b"\x3c\xbe\x7b", "F8_E8M0": b"\x7f\x80\x7e", "I8": b"\x01\xfe\x03"}[
        code
    ]
    found = read_tensors(write_safetensors(tmp_path / "x.safetensors", code, 1, data))["t"]
    assert found.astype(np.float64).tolist() == expected


@pytest.mark.parametrize("code", ["I8", "U8", "F8_E8M0", "BOOL"])
def test_quantised_weights_are_refused(tmp_path: Path, code: str) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", code, 1, b"\x01\x01", ANCHORS[0])
    with pytest.raises(UserError, match="which is quantised"):
        read_part(path, ANCHORS)


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2", "Q4", "nonsense"])
def test_formats_that_are_not_read_are_named(tmp_path: Path, code: str) -> None:
    with pytest.raises(UserError, match=f"tensor 't' is of number format {code}, which is not read"):
        read_tensors(write_safetensors(tmp_path / "x.safetensors", code, 0.5, b"abc"))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**40]}, {"shape": [-1]}, {"shape": [1.5]}, {"shape": "ab"}, {"data_offsets": [4, 16]}, {"data_offsets": [0, 12]},
        {"data_offsets": [-16, 0]}, {"data_offsets": [0]}, {"shape": [True] * 2}, {"shape": None}, {"shape": [1] * 40},
    ],
)  # fmt: skip
def test_safetensors_that_do_not_fit_their_header_are_refused(tmp_path: Path, changes: dict) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", "F32", 4, bytes(16), **changes)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        read_tensors(path)


def test_weights_in_parts_and_variants(tmp_path: Path) -> None:
    tensors = {name: np.full(3, i, np.float16) for i, name in enumerate(NAMES)}
    for number, names in ((1, NAMES[:2]), (2, NAMES[2:])):
        save_file({name: tensors[name] for name in names}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    placed = {name: f"model-0000{1 + (i > 1)}-of-00002.safetensors" for i, name in enumerate(NAMES)}
    index.write_text(json.dumps({"weight_map": placed}))
    assert find_weights(tmp_path, ("model",)) == index and is_checkpoint(tmp_path)
    found = read_tensors(index, ANCHORS)
    assert all(np.array_equal(found[name], tensors[name]) for name in NAMES)
    for wrong, message in (
        ({"weight_map": {"a": "../model.safetensors"}}, "names '../model"),
        ({"weight_map": {"a": "lost.safetensors"}}, "not beside it"),
        ({"weight_map": 3}, "no weight_map"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=message):
            read_tensors(index)
    index.unlink()
    assert find_weights(tmp_path, ("model",)) is None
    save_file(tensors, tmp_path / "model.fp16.safetensors")
    assert find_weights(tmp_path, ("model",)) == tmp_path / "model.fp16.safetensors"


def archive(path: Path, data: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", data)
        for key, content in storages.items():
            file.writestr(f"x/data/{key}", content)
    return path


def refused(path: Path, message: str) -> None:
    """In a moment, with hardly any memory."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            read_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 1.5e8
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10


def test_small_files_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    for at in (2**28, 2**31 - 1):
        refused(archive(tmp_path / "memo.pt", b"\x80\x02}r" + struct.pack("<I", at) + b".", {}), "counts to")
    laughs = b"\x80\x02]" + b"q\x01h\x01h\x01\x86" * 40 + b"q\x02}X\x01\0\0\0ah\x02s."
    refused(archive(tmp_path / "laughs.pt", laughs, {}), "holds no tensors")
    refused(archive(tmp_path / "cyclic.pt", b"\x80\x02]q\x01h\x01a}X\x01\0\0\0ah\x01s.", {}), "holds no tensors")
    wide = Global("torch._utils", "_rebuild_tensor_v2", StorageOf("s"), 0, (1024, 1024), (0, 0), False, None)
    refused(
        write_archive(tmp_path / "wide.pt", {f"t{i}": wide for i in range(100)}, {"s": np.ones(1, np.float32)}),
        "declares",
    )
    shared = {
        f"t{i}": Global("torch._utils", "_rebuild_tensor_v2", StorageOf("s"), 0, (2**18,), (1,), False)
        for i in range(200)
    }
    refused(write_archive(tmp_path / "shared.pt", shared, {"s": np.ones(2**18, np.float32)}), "declares")
    zipped = archive(tmp_path / "zipped.pt", pickle.dumps({}, 2), {"0": bytes(2**24)}, zipfile.ZIP_DEFLATED)
    refused(zipped, "is compressed")
    refused(archive(tmp_path / "deep.pt", b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", {}), "it is a list")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.pt", "zero.safetensors"):
        with pytest.raises(UserError, match="no regular file"):
            read_tensors(tmp_path / name)
