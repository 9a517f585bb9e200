"""U-Nets under the releases' names: read off their tensors, in and out with the same bits, and files of the other family refused."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dit.cli import main
from dit.config import DATASETS, model_config
from dit.design.unet import UNetConfig
from dit.design.unet.models import PUBLISHED
from dit.errors import UserError
from dit.weights import official, unet_names
from dit.weights.official_config import Declared, infer_model
from dit.weights.unet_config import infer_unet

ADM = UNetConfig(
    "adm", 32, (32, 64), 1, (8,), 16, 3, 7, head_channels=0, num_heads=2, context=512, class_dropout_prob=0.0
)
LDM = UNetConfig("ldm", 32, (32, 64), 1, (8,), 16, 4, 7, head_channels=16, context=24)
DECLARED = {
    "adm": Declared(num_heads=2, input_size=16),
    "ldm": Declared(head_channels=16, input_size=16, num_classes=7),
}


def random_state(model):
    """A release's state dict of random tensors."""
    draws = np.random.default_rng(0)
    shapes = {name: there for name, there, _ in unet_names.official_names(model).values()}
    return {name: draws.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("model", [ADM, LDM], ids=["adm", "ldm"])
def test_import_and_export_give_the_same_bits(tmp_path, capsys, model):
    state = random_state(model)
    beside = {"first_stage_model.encoder.conv_in.weight": np.zeros(3, np.float32)} if model.kind == "ldm" else {}
    save_file(state | beside, tmp_path / "release.safetensors")
    options = ["--input-size", "16"]
    options += ["--num-heads", "2"] if model.kind == "adm" else ["--head-channels", "16", "--num-classes", "7"]
    assert main(["import", str(tmp_path / "release.safetensors"), "--out", str(tmp_path / "in"), *options]) == 0
    assert "a U-Net of 2 levels, channels 32, 64" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "in"), "--out", str(tmp_path / "out.safetensors")]) == 0
    again = load_file(tmp_path / "out.safetensors")
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


@pytest.mark.parametrize("model", [ADM, LDM], ids=["adm", "ldm"])
def test_the_model_is_read_off_the_tensors(model):
    assert infer_unet(random_state(model), DECLARED[model.kind], "file") == model


@pytest.mark.long
@pytest.mark.parametrize("name", ["ADM-64", "ADM-upsampler-256", "LDM-4", "LDM-8"])
def test_published_models_need_nothing_declared(name):
    model = PUBLISHED[name]
    shapes = {official: there for official, there, _ in unet_names.official_names(model).values()}
    state = {official: np.broadcast_to(np.float32(0), there) for official, there in shapes.items()}
    assert infer_unet(state, Declared(), "file") == model


def test_latent_diffusions_average_is_taken_where_there_is_one():
    state = random_state(LDM)
    average = {
        unet_names.AVERAGE + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in state.items()
        if name.startswith(unet_names.NETWORK)
    }
    found = unet_names.of_release(state | average | {"betas": np.zeros(1, np.float32)})
    assert found.keys() == state.keys()
    name = unet_names.NETWORK + "out.2.bias"
    np.testing.assert_array_equal(found[name], state[name] + 1)


def test_a_file_of_the_other_family_is_said_to_be_one():
    model = model_config("adaln_zero", "S", 4, DATASETS["digits"], "nano")
    shapes = official.shapes(model)
    dit = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(UserError, match="file holds a DiT, not a U-Net"):
        infer_unet(dit, Declared(), "file")
    for unet in (ADM, LDM):
        with pytest.raises(UserError, match="file holds a U-Net, not a DiT"):
            infer_model(random_state(unet), Declared(), "file")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (Declared(num_heads=2), "its input size is unknown: give it with --input-size"),
        (Declared(input_size=16), "give its attention's --num-heads, or the channels of a head with --head-channels"),
        (Declared(2, 16, 3), "has 7 rows of classes, so --num-classes 3 cannot be: expected 6 or 7"),
        (Declared(2, 15), "15 px does not halve evenly"),
    ],
)
def test_what_no_tensor_tells_has_to_be_declared(declared, message):
    with pytest.raises(UserError) as error:
        infer_unet(random_state(ADM), declared, "file")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_extra_and_misshapen_tensors_are_named():
    state = random_state(ADM)
    state["out.9.bias"] = state.pop("out.0.bias")
    state["out.2.bias"] = np.zeros(5, np.float32)
    with pytest.raises(
        UserError, match=r"missing \['out.0.bias'\]; extra \['out.9.bias'\]; out.2.bias is \(5,\), expected \(6,\)"
    ):
        unet_names.to_ours(state, ADM)
