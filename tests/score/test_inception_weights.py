"""The same weights out of every container hash the same; what is missing, extra, misshapen or damaged is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from inception_rule import GOLDEN, weights
from safetensors.numpy import save_file

from dit.errors import UserError
from dit.score import graph_def, inception_weights
from dit.weights import torch_legacy


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return weights()


def _graph(constants: dict[str, np.ndarray]) -> bytes:
    """A GraphDef through Google's protocol buffers, with messages declared here: another writer than the reader's author."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="graph.proto", package="tf", syntax="proto3")

    def message(name: str, *fields: tuple) -> None:
        declared = file.message_type.add(name=name)
        for field, number, kind, label, type_name in fields:
            declared.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)

    kinds = descriptor_pb2.FieldDescriptorProto
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("Dim", ("size", 1, kinds.TYPE_INT64, one, None))
    message("Shape", ("dim", 2, kinds.TYPE_MESSAGE, many, ".tf.Dim"))
    message(
        "Tensor",
        ("dtype", 1, kinds.TYPE_INT32, one, None),
        ("shape", 2, kinds.TYPE_MESSAGE, one, ".tf.Shape"),
        ("version", 3, kinds.TYPE_INT32, one, None),
        ("content", 4, kinds.TYPE_BYTES, one, None),
        ("floats", 5, kinds.TYPE_FLOAT, many, None),
    )
    message("Attr", ("type", 6, kinds.TYPE_INT32, one, None), ("tensor", 8, kinds.TYPE_MESSAGE, one, ".tf.Tensor"))
    message("Entry", ("key", 1, kinds.TYPE_STRING, one, None), ("value", 2, kinds.TYPE_MESSAGE, one, ".tf.Attr"))
    message(
        "Node",
        ("name", 1, kinds.TYPE_STRING, one, None),
        ("op", 2, kinds.TYPE_STRING, one, None),
        ("input", 3, kinds.TYPE_STRING, many, None),
        ("attr", 5, kinds.TYPE_MESSAGE, many, ".tf.Entry"),
    )
    message("Graph", ("node", 1, kinds.TYPE_MESSAGE, many, ".tf.Node"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    graph = message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Graph"))()
    graph.node.add(name="resize", op="ResizeBilinear", input=["images"])
    for index, (name, value) in enumerate(constants.items()):
        node = graph.node.add(name=name, op="Const")
        node.attr.add(key="dtype").value.type = 1
        tensor = node.attr.add(key="value").value.tensor
        tensor.dtype = 1
        for size in value.shape:
            tensor.shape.dim.add(size=size)
        if index % 5 == 1 and value.size < 2000:  # small constants may be spelt out
            tensor.floats.extend(value.ravel().tolist())
        else:
            tensor.content = value.astype("<f4").tobytes()
    return graph.SerializeToString()


def _constants(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = inception_weights.tensorflow_names()
    return {names[name]: (value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T) for name, value in state.items()}


def test_expected_tensors_are_those_of_the_public_network() -> None:
    with np.load(GOLDEN) as golden:
        listed = {str(entry) for entry in golden["shapes"] if "num_batches_tracked" not in str(entry)}
    assert {f"{name}:{shape}" for name, shape in inception_weights.EXPECTED.items()} == listed


def test_safetensors_and_frozen_graph_hold_the_same_weights(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file({**state, "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0)}, tmp_path / "weights.safetensors")
    (tmp_path / "graph.pb").write_bytes(_graph(_constants(state)))
    one, other = (inception_weights.load(tmp_path / name) for name in ("weights.safetensors", "graph.pb"))
    assert one[1] == other[1] == inception_weights.weights_hash(state)
    for name, (kernel, bias) in one[0].convolutions.items():
        np.testing.assert_array_equal(kernel, other[0].convolutions[name][0])
        np.testing.assert_array_equal(bias, other[0].convolutions[name][1])


def test_names_in_the_graph() -> None:
    names = inception_weights.tensorflow_names()
    assert names["Conv2d_3b_1x1.conv.weight"] == "conv_3/conv2d_params"
    assert names["Mixed_5b.branch3x3dbl_3.bn.bias"] == "mixed/tower_1/conv_2/batchnorm/beta"
    assert names["Mixed_6a.branch3x3dbl_1.bn.running_var"] == "mixed_3/tower/conv/batchnorm/moving_variance"
    assert names["Mixed_6d.branch1x1.conv.weight"] == "mixed_6/conv/conv2d_params"
    assert names["Mixed_7a.branch7x7x3_4.conv.weight"] == "mixed_8/tower_1/conv_3/conv2d_params"
    assert names["Mixed_7c.branch3x3dbl_3b.conv.weight"] == "mixed_10/tower_1/mixed/conv_1/conv2d_params"
    assert len(set(names.values())) == len(inception_weights.EXPECTED)


def test_one_value_may_stand_for_all(tmp_path: Path) -> None:
    graph = _graph({"first": np.zeros(3, np.float32), "second": np.array([2.5], np.float32)})
    (tmp_path / "graph.pb").write_bytes(
        graph.replace(b"\x12\x02\x08\x01", b"\x12\x02\x08\x07", 1)
    )  # its shape says seven
    assert graph_def.read_constants(tmp_path / "graph.pb")["second"].tolist() == [2.5] * 7


def test_what_is_wrong_is_named(state: dict[str, np.ndarray]) -> None:
    lacking = {name: value for name, value in state.items() if name != "Mixed_6c.branch7x7_2.bn.bias"}
    with pytest.raises(UserError, match=r"lacks tensor 'Mixed_6c\.branch7x7_2\.bn\.bias' \(1 missing"):
        inception_weights.check(lacking, "file")
    with pytest.raises(UserError, match=r"unknown tensor 'AuxLogits\.fc\.bias'"):
        inception_weights.check({**state, "AuxLogits.fc.bias": np.zeros(1)}, "file")
    with pytest.raises(UserError, match=r"'fc\.bias' has shape \(1000,\), expected \(1008,\)"):
        inception_weights.check({**state, "fc.bias": np.zeros(1000)}, "file")
    with pytest.raises(UserError, match=r"'fc\.bias' has values that are not finite"):
        inception_weights.check({**state, "fc.bias": np.full(1008, np.nan)}, "file")


def test_graph_faults(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    graph = _graph({"conv/conv2d_params": np.zeros((3, 3, 3, 32), np.float32)})
    path = tmp_path / "graph.pb"
    path.write_bytes(graph)
    with pytest.raises(UserError, match="lacks tensor 'softmax/weights'"):
        inception_weights.load(path)
    path.write_bytes(graph[:-100])
    with pytest.raises(UserError, match="not a whole TensorFlow graph"):
        inception_weights.load(path)


def test_missing_file_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_CACHE", str(tmp_path))
    monkeypatch.delenv(inception_weights.VARIABLE, raising=False)
    with pytest.raises(UserError, match=f"put it at {tmp_path}/pt_inception-2015-12-05-6726825d.pth"):
        inception_weights.locate(None)


def test_a_name_with_a_hash_is_held_to_it(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    wrong = tmp_path / "weights-01234567.pth"
    wrong.write_bytes(b"anything")
    with pytest.raises(
        UserError, match=f"SHA-256 {hashlib.sha256(b'anything').hexdigest()[:8]}.*its name says 01234567"
    ):
        inception_weights.load(wrong)


@pytest.mark.torch
def test_both_formats_of_pytorch(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    for zipped in (True, False):
        path = tmp_path / f"weights{zipped}.pth"
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        assert torch_legacy.is_legacy(path) is not zipped
        assert inception_weights.load(path)[1] == inception_weights.weights_hash(state)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        inception_weights.load(path)


def test_a_legacy_pickle_runs_nothing(tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple:
            return print, ("run",)

    path = tmp_path / "weights.pth"
    parts = [torch_legacy.MAGIC, 1001, {"little_endian": True}, {"fc.bias": Hostile()}, []]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(UserError, match=r"asks to run builtins\.print"):
        inception_weights.load(path)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (b"\x0a\x00" * 2**20 + b"\x0a\x00", "a message of more than 1,048,576 fields"),
        # node(name "a", op "Const", attr "value": tensor of dtype 1, shape 2^40, one value)
        (b"\x0a\x2d\x0a\x01a\x12\x05Const\x2a\x21\x0a\x05value\x12\x18\x42\x16\x08\x01\x12\x0a\x12\x08\x08\x80\x80\x80\x80\x80\x80\x01"
         b"\x22\x04\0\0\0\0", "not a whole TensorFlow graph"),
        (b"\xff" * 20, "not a whole TensorFlow graph"),
    ],
)  # fmt: skip
def test_small_graphs_that_ask_for_much_are_refused(tmp_path: Path, graph: bytes, message: str) -> None:
    (tmp_path / "graph.pb").write_bytes(graph)
    with pytest.raises(UserError, match=message):
        graph_def.read_constants(tmp_path / "graph.pb")
    (tmp_path / "zero.pb").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is not a file"):
        graph_def.read_constants(tmp_path / "zero.pb")
