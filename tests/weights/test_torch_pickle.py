"""Files that PyTorch 2.13 wrote (tests/golden/torch_*), and hostile or damaged ones made here."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dit.errors import UserError
from dit.weights.torch_pickle import read_pickle, read_state_dict, read_tensors

GOLDEN = Path(__file__).parents[1] / "golden"


class Global:
    """Pickles as the function `module.name` applied to `args`, whatever it is and whether or not it exists."""

    def __init__(self, module: str, name: str, *args: object):
        self.module, self.name, self.args = module, name, args


class StorageOf:
    """Pickles as a reference to the storage `key`."""

    def __init__(self, key: str):
        self.key = key


def stand_in(*_: object) -> None:
    """What the pickler sees; its name in the bytes is then replaced, which protocol 2 allows: names are plain lines."""


def write_archive(path: Path, value: object, storages: dict[str, np.ndarray] | None = None) -> Path:
    """A file like torch.save's, in which `Global`s may name anything, with float `storages`."""
    storages = storages or {}
    names: list[str] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if not isinstance(obj, StorageOf):
                return None
            names.append("torch\nFloatStorage")
            return ("storage", stand_in, obj.key, "cpu", storages[obj.key].size)

        def reducer_override(self, obj: object) -> object:
            if not isinstance(obj, Global):
                return NotImplemented
            names.append(f"{obj.module}\n{obj.name}")
            return stand_in, obj.args

    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=2)
    pickler.fast = True  # Without a memo every name is written out, in the order of `names`.
    pickler.dump(value)
    first, *rest = buffer.getvalue().split(f"c{__name__}\nstand_in\n".encode())
    data = first + b"".join(f"c{name}\n".encode() + part for name, part in zip(names, rest, strict=True))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for key, storage in storages.items():
            archive.writestr(f"x/data/{key}", storage.tobytes())
    return path


def view(offset: object, size: object, stride: object) -> Global:
    return Global("torch._utils", "_rebuild_tensor_v2", StorageOf("s0"), offset, size, stride, False, None)


def test_every_dtype_and_layout_reads_as_pytorch_wrote_it() -> None:
    tensors = read_state_dict(GOLDEN / "torch_tensors.pt")
    expected = np.load(GOLDEN / "torch_tensors.npz")
    assert sorted(tensors) == sorted(expected)
    assert tensors["bfloat16"].dtype == ml_dtypes.bfloat16
    for name in expected:
        tensor = tensors[name].astype(np.float32) if name == "bfloat16" else tensors[name]
        assert tensor.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


def test_a_training_checkpoint_gives_all_its_parts_and_its_average_first() -> None:
    path = GOLDEN / "torch_checkpoint.pt"
    whole = read_pickle(path)
    assert whole["args"].name == "argparse.Namespace"
    assert whole["args"].mapping() == {"model": "DiT-S/8", "image_size": 256, "lr": 1e-4}
    assert whole["opt"]["param_groups"][0]["betas"] == (0.9, 0.999)
    averaged, trained = read_state_dict(path), read_state_dict(path, key="model")
    assert sorted(averaged) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    for name in averaged:
        np.testing.assert_array_equal(averaged[name], trained[name] * np.float32(0.5))
    with pytest.raises(UserError, match="no weights under --key nope: expected one of 'model', 'ema'"):
        read_state_dict(path, key="nope")


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("torch.nn", "Linear"), ("torch", "load")]
)
def test_other_names_are_refused_and_named(tmp_path: Path, module: str, name: str) -> None:
    canary = tmp_path / "ran"
    bad = {"weight": Global(module, name, f"touch {canary}")}
    path = write_archive(tmp_path / "x.pt", bad)
    with pytest.raises(UserError, match=rf"asks to run {module}\.{name}, .*refused"):
        read_state_dict(path)
    assert not canary.exists()


def test_views_read_their_elements(tmp_path: Path) -> None:
    storage = np.arange(12, dtype=np.float32)
    saved = {"t": view(1, (2, 3), (1, 4)), "whole": view(0, (12,), (1,))}
    tensors = read_state_dict(write_archive(tmp_path / "x.pt", saved, {"s0": storage}))
    np.testing.assert_array_equal(tensors["t"], [[1, 5, 9], [2, 6, 10]])
    np.testing.assert_array_equal(tensors["whole"], storage)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (13,), (1,)), (1, (12,), (1,)), (0, (2, 2), (1, 11)), (-4, (2,), (1,)), (3, (2,), (-1,)), (0, (10**9,), (0,))],
)
def test_views_outside_their_storage_are_refused(tmp_path, offset, size, stride) -> None:
    saved, storages = {"t": view(offset, size, stride)}, {"s0": np.arange(12, dtype=np.float32)}
    path = write_archive(tmp_path / "x.pt", saved, storages)
    with pytest.raises(UserError, match=r"outside its storage|impossible size"):
        read_state_dict(path)


def test_damage_is_told_apart(tmp_path: Path) -> None:
    data = (GOLDEN / "torch_tensors.pt").read_bytes()
    flipped = bytearray(data)
    with zipfile.ZipFile(GOLDEN / "torch_tensors.pt") as archive:
        member = archive.getinfo("torch_tensors/data/0")
    flipped[member.header_offset + 30 + len(member.filename) + 70] ^= 1
    cases = {
        "cut.pt": (data[: len(data) // 2], "cut short"),
        "flipped.pt": (bytes(flipped), "damaged"),
        "text.pt": (b"<html>not found</html>", "not a PyTorch file"),
        "empty.pt": (b"", "not a PyTorch file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} .*{message}"):
            read_state_dict(tmp_path / name)
    with pytest.raises(UserError, match=r"nowhere\.pt: No such file"):
        read_pickle(tmp_path / "nowhere.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_pickle(tmp_path / "other.pt")


def test_a_state_dict_of_other_things_is_refused(tmp_path: Path) -> None:
    for value, message in ([1, 2], "it is a list"), ({"epoch": 3}, "entry 'epoch' is a int"), ({}, "no tensors"):
        path = write_archive(tmp_path / "x.pt", value)
        with pytest.raises(UserError, match=message):
            read_state_dict(path)


def test_read_tensors_goes_by_the_suffix(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    read = read_tensors(tmp_path / "x.safetensors")
    for name in tensors:
        assert read[name].dtype == tensors[name].dtype
        np.testing.assert_array_equal(read[name], tensors[name])
    assert sorted(read_tensors(GOLDEN / "torch_tensors.pt"))[0] == "bfloat16"
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"cut\.safetensors is not a whole"):
        read_tensors(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"x\.onnx is; expected"):
        read_tensors(tmp_path / "x.onnx")


@pytest.mark.torch
def test_random_views_agree_with_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 5, 4, 3)
    saved = {
        "a": base.permute(3, 1, 0, 2),
        "b": base[1:5:2, :, ::3],
        "c": base.bfloat16()[..., 1],
        "d": base[2, 3, 1, 2],
    }
    torch.save(saved, tmp_path / "x.pt")
    for name, tensor in read_state_dict(tmp_path / "x.pt").items():
        np.testing.assert_array_equal(tensor.astype(np.float32), saved[name].float().numpy(), err_msg=name)
