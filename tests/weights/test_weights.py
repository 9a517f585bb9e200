"""Official and diffusers files in, our checkpoints, official files out: parity with the reference's outputs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_torch_pickle import Global, StorageOf, write_archive

from dit.cli import main
from dit.design.config import DATASETS, RunConfig, model_config
from dit.errors import UserError
from dit.store.study import RunStore
from dit.train.checkpoint import CheckpointWriter, flatten
from dit.train.restore import Loaded, open_checkpoint, read_official
from dit.train.step import build
from dit.weights.official_config import Declared, infer_model

Flat = dict[str, np.ndarray]


@pytest.fixture
def official(golden, tmp_path: Path):
    """The reference model's tensors, and a file of them."""
    values = golden("model_patch2")
    tensors = {name.removeprefix("state_dict/"): values[name] for name in values if name.startswith("state_dict/")}
    save_file(tensors, tmp_path / "official.safetensors")
    return tensors, tmp_path / "official.safetensors"


def imported(source: Path, out: Path, *options: str) -> Loaded:
    assert main(["import", str(source), "--out", str(out), "--num-heads", "4", *options]) == 0
    return open_checkpoint(out)


def as_diffusers(tensors: Flat, depth: int) -> Flat:
    """What diffusers' conversion script makes of the official tensors."""
    renamed = {}
    for kind in ("weight", "bias"):
        renamed[f"pos_embed.proj.{kind}"] = tensors[f"x_embedder.proj.{kind}"]
        renamed[f"proj_out_1.{kind}"] = tensors[f"final_layer.adaLN_modulation.1.{kind}"]
        renamed[f"proj_out_2.{kind}"] = tensors[f"final_layer.linear.{kind}"]
        for i in range(depth):
            ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
            renamed[f"{theirs}.norm1.emb.timestep_embedder.linear_1.{kind}"] = tensors[f"t_embedder.mlp.0.{kind}"]
            renamed[f"{theirs}.norm1.emb.timestep_embedder.linear_2.{kind}"] = tensors[f"t_embedder.mlp.2.{kind}"]
            renamed[f"{theirs}.norm1.linear.{kind}"] = tensors[f"{ours}.adaLN_modulation.1.{kind}"]
            thirds = np.split(tensors[f"{ours}.attn.qkv.{kind}"], 3)
            renamed |= {f"{theirs}.attn1.to_{letter}.{kind}": third for letter, third in zip("qkv", thirds)}
            renamed[f"{theirs}.attn1.to_out.0.{kind}"] = tensors[f"{ours}.attn.proj.{kind}"]
            renamed[f"{theirs}.ff.net.0.proj.{kind}"] = tensors[f"{ours}.mlp.fc1.{kind}"]
            renamed[f"{theirs}.ff.net.2.{kind}"] = tensors[f"{ours}.mlp.fc2.{kind}"]
    table = tensors["y_embedder.embedding_table.weight"]
    renamed |= {
        f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight": table.copy() for i in range(depth)
    }
    return {name: np.ascontiguousarray(tensor.copy()) for name, tensor in renamed.items()}


def write_diffusers(folder: Path, tensors: Flat, **changes: object) -> Path:
    folder.mkdir(parents=True)
    config = {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": 4,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def equal(one: Loaded, other: Loaded) -> bool:
    left, right = flatten(one.params), flatten(other.params)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["model_patch2", "model_patch4"])
def test_an_imported_model_gives_the_reference_outputs(golden, tmp_path: Path, name: str) -> None:
    values = golden(name)
    save_file(
        {key.removeprefix("state_dict/"): values[key] for key in values if key.startswith("state_dict/")},
        tmp_path / "a.safetensors",
    )
    loaded = imported(tmp_path / "a.safetensors", tmp_path / "a")
    x, t, y = values["x"].transpose(0, 2, 3, 1), values["t"].astype(np.float32), values["y"].astype(np.int32)
    out = np.asarray(jax.jit(loaded.apply)(loaded.params, jnp.asarray(x), jnp.asarray(t), jnp.asarray(y)))
    expected = values["out"].transpose(0, 2, 3, 1)
    assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (loaded.data.image_size, loaded.data.is_latent, loaded.step) == (64, True, None)


def test_in_and_out_again_changes_no_bit(official, tmp_path: Path) -> None:
    tensors, path = official
    imported(path, tmp_path / "ours")
    assert main(["export", str(tmp_path / "ours"), "--out", str(tmp_path / "out" / "b.safetensors")]) == 0
    out = load_file(tmp_path / "out" / "b.safetensors")
    assert out.keys() == tensors.keys()
    for name in tensors:
        assert out[name].dtype == np.float32 and out[name].tobytes() == tensors[name].tobytes(), name
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.safetensors"]


def test_a_pytorch_file_reads_like_a_safetensors_file(official, tmp_path: Path) -> None:
    tensors, path = official
    value = {}
    for name, tensor in tensors.items():
        stride = tuple(step // 4 for step in np.ascontiguousarray(tensor).strides)
        value[name] = Global(
            "torch._utils", "_rebuild_tensor_v2", StorageOf(name), 0, tensor.shape, stride, False, None
        )
    write_archive(tmp_path / "a.pt", {"ema": value}, {name: tensor.ravel() for name, tensor in tensors.items()})
    assert equal(read_official(tmp_path / "a.pt", Declared(4)), read_official(path, Declared(4)))


def test_diffusers_names_give_the_same_model(official, tmp_path: Path) -> None:
    tensors, path = official
    folder = write_diffusers(tmp_path / "pipe" / "transformer", as_diffusers(tensors, 3))
    ours = imported(path, tmp_path / "ours")
    for source in (folder, folder.parent, folder / "diffusion_pytorch_model.safetensors"):
        loaded = open_checkpoint(source)
        assert loaded.model == ours.model and equal(loaded, ours)


def broken_diffusers(tensors: Flat, change: str) -> Flat:
    match change:
        case "embedder":
            tensors["transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"][0] += 1
        case "key":
            del tensors["transformer_blocks.1.attn1.to_k.weight"]
        case "extra":
            tensors["transformer_blocks.1.attn2.to_q.weight"] = np.zeros((2, 2), np.float32)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("embedder", "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias differs from block 0's"),
        ("key", "missing ['transformer_blocks.1.attn1.to_k.weight']"),
        ("extra", "extra ['transformer_blocks.1.attn2.to_q.weight']"),
    ],
)
def test_a_diffusers_file_that_is_no_such_model_is_refused(official, tmp_path: Path, change: str, message: str) -> None:
    folder = write_diffusers(tmp_path / "d", broken_diffusers(as_diffusers(official[0], 3), change))
    with pytest.raises(UserError) as error:
        read_official(folder)
    assert message in str(error.value)


def test_a_diffusers_config_of_another_network_is_refused(official, tmp_path: Path) -> None:
    folder = write_diffusers(tmp_path / "d", as_diffusers(official[0], 3), norm_type="ada_norm_single")
    with pytest.raises(UserError, match="norm_type is 'ada_norm_single'"):
        read_official(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "nan", "positions"])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_written(
    official, tmp_path: Path, change: str, capsys
) -> None:
    tensors, path = official
    name = "blocks.1.attn.proj.weight"
    match change:
        case "missing":
            del tensors[name]
        case "extra":
            tensors[name := "blocks.1.attn.rel_pos"] = np.zeros(3, np.float32)
        case "misshapen":
            tensors[name] = tensors[name][:-1].copy()
        case "nan":
            tensors[name][3, 3] = np.nan
        case "positions":
            tensors[name := "pos_embed"] = tensors["pos_embed"] + 1
    save_file(tensors, path)
    assert main(["import", str(path), "--out", str(tmp_path / "out"), "--num-heads", "4"]) == 2
    message = capsys.readouterr().err
    assert name in message and message.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_the_tensors_do_not_tell_must_be_declared(official, tmp_path: Path, capsys) -> None:
    tensors, path = official
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "--num-heads" in capsys.readouterr().err
    del tensors["pos_embed"]
    with pytest.raises(UserError, match="--input-size"):
        infer_model(tensors, Declared(4), "x")
    assert infer_model(tensors, Declared(4, 16), "x").tokens == 64
    eleven = infer_model(tensors, Declared(4, 8, 11), "x")
    assert (eleven.num_classes, eleven.class_dropout_prob) == (11, 0.0)
    with pytest.raises(UserError, match="--num-classes 9 cannot be"):
        infer_model(tensors, Declared(4, 8, 9), "x")


def test_the_released_model_is_recognised_by_its_shapes() -> None:
    shapes = {
        "x_embedder.proj.weight": (1152, 4, 2, 2),
        "y_embedder.embedding_table.weight": (1001, 1152),
        "final_layer.linear.weight": (32, 1152),
        "pos_embed": (1, 1024, 1152),
        **{f"blocks.{i}.mlp.fc1.weight": (4608, 1152) for i in range(28)},
    }
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert infer_model(tensors, Declared(), "x") == model_config("adaln_zero", "XL", 2, DATASETS["imagenet512"])


def test_nothing_that_exists_is_written_over(official, tmp_path: Path, capsys) -> None:
    _, path = official
    imported(path, tmp_path / "a")
    assert main(["import", str(path), "--out", str(tmp_path / "a"), "--num-heads", "4"]) == 2
    before = path.read_bytes()
    assert main(["export", str(tmp_path / "a"), "--out", str(path)]) == 2
    assert path.read_bytes() == before
    assert "is there already" in capsys.readouterr().err


def test_a_changed_or_damaged_import_is_refused(official, tmp_path: Path) -> None:
    imported(official[1], tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"num_heads": 4', '"num_heads": 2'))
    with pytest.raises(UserError, match="has changed since it was written"):
        open_checkpoint(tmp_path / "a")
    victim = max((tmp_path / "b" / "ema").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        open_checkpoint(tmp_path / "b")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory):
    """A run with kept averages of steps 1 and 2, a training state of step 3, and a save that is under way."""
    data = DATASETS["digits"]
    run = RunConfig(model=model_config("in_context", "S", 4, data, ladder="nano"), data=data, steps=3)
    record = RunStore(tmp_path_factory.mktemp("study"), run)
    record.create()
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(build(run).init))

    def filled(value: float):
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), state.ema)

    with CheckpointWriter(record.path / "ema", run.hash) as averages:
        averages.save(1, filled(1.0))
        averages.save(2, filled(2.0))
    with CheckpointWriter(record.path / "checkpoints", run.hash) as states:
        states.save(3, state._replace(ema=filled(3.0), params=filled(-1.0)))
    (record.path / "ema" / ".00000009.writing-1").mkdir()
    return record.path


def test_a_run_gives_its_newest_averages_or_those_of_a_step(run_folder: Path) -> None:
    for step, expected in ((None, 3), (1, 1), (2, 2), (3, 3)):
        loaded = open_checkpoint(run_folder, step)
        assert loaded.step == expected
        assert {float(value) for leaf in flatten(loaded.params).values() for value in np.unique(leaf)} == {
            float(expected)
        }
    with pytest.raises(UserError, match="no checkpoint of step 7: expected one of 1, 2, 3"):
        open_checkpoint(run_folder, 7)


def test_reading_a_run_leaves_its_writer_alone(run_folder: Path) -> None:
    open_checkpoint(run_folder)
    assert (run_folder / "ema" / ".00000009.writing-1").is_dir()


def test_what_is_no_checkpoint_is_said_to_be_none(official, run_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    for path, message in (
        ("none", "no checkpoint at"),
        ("empty", "no checkpoint in"),
        ("study", "is a study"),
        ("notes.txt", "cannot tell"),
    ):
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path / path)
    with pytest.raises(UserError, match="one set of weights only"):
        open_checkpoint(official[1], step=3)
    assert main(["export", str(run_folder), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "no official names" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
