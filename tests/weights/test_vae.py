"""The autoencoder against diffusers' outputs (tests/golden/vae_tiny*), its loader against wrong files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from dit.errors import UserError
from dit.weights.torch_pickle import read_state_dict
from dit.weights.vae import LATENT_SCALE, AutoencoderKL, VaeConfig
from dit.weights.vae_weights import from_tensors, load_vae, read_config, tensor_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = VaeConfig(
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    down_attention=(False, False),
    up_attention=(False, False),
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return {name: array.transpose(0, 2, 3, 1) for name, array in np.load(GOLDEN / "vae_tiny_io.npz").items()}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return load_vae(GOLDEN / "vae_tiny.safetensors")[0]


@nnx.jit
def encode(model: AutoencoderKL, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model.encode(images)


def relative_error(ours: object, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def random_tensors(config: VaeConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in tensor_shapes(config).items()}


def test_encoder_agrees_with_diffusers(vae: AutoencoderKL, golden: dict[str, np.ndarray]) -> None:
    mean, logvar = encode(vae, jnp.asarray(golden["image"]))
    assert relative_error(mean, golden["mean"]) < 1e-5
    assert relative_error(logvar, golden["logvar"]) < 1e-5


def test_decoder_agrees_with_diffusers(vae: AutoencoderKL, golden: dict[str, np.ndarray]) -> None:
    assert relative_error(vae.decode(jnp.asarray(golden["latent"])), golden["decoded"]) < 1e-5


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    assert sum(int(np.prod(shape)) for shape in tensor_shapes(VaeConfig()).values()) == 83_653_863
    assert VaeConfig().downsampling == 8
    assert LATENT_SCALE == 0.18215


def test_the_log_variance_is_clipped_as_the_reference_clips_it(golden: dict[str, np.ndarray]) -> None:
    tensors = load_file(GOLDEN / "vae_tiny.safetensors")
    tensors["quant_conv.bias"] = np.array([0] * 4 + [1e3, -1e3, 0, 0], np.float32)
    _, logvar = encode(from_tensors(read_config(GOLDEN / "vae_tiny.json"), tensors), jnp.asarray(golden["image"]))
    assert np.all(np.asarray(logvar)[..., :2] == [20, -30])


def test_a_bin_file_with_the_older_attention_names_loads() -> None:
    model, _ = load_vae(GOLDEN / "vae_old_names.bin")
    saved = read_state_dict(GOLDEN / "vae_old_names.bin")
    assert "encoder.mid_block.attentions.0.query.weight" in saved
    attention = model.encoder.mid_block.attentions[0]
    for ours, theirs in ((attention.to_q, "query"), (attention.to_v, "value"), (attention.to_out[0], "proj_attn")):
        weight = saved[f"encoder.mid_block.attentions.0.{theirs}.weight"]
        np.testing.assert_array_equal(np.asarray(ours.kernel), weight.T)


def test_attention_saved_as_a_convolution_is_the_same_attention(golden: dict[str, np.ndarray]) -> None:
    tensors = load_file(GOLDEN / "vae_tiny.safetensors")
    config = read_config(GOLDEN / "vae_tiny.json")
    as_conv = {k: v[:, :, None, None] if ".attentions." in k and v.ndim == 2 else v for k, v in tensors.items()}
    a, b = from_tensors(config, tensors), from_tensors(config, as_conv)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(a)), nnx.to_pure_dict(nnx.state(b)))


def test_other_configs_have_the_tensors_diffusers_has() -> None:
    attention = dataclasses.replace(TINY, down_attention=(False, True), up_attention=(True, False))
    names = tensor_shapes(attention)
    assert names["encoder.down_blocks.1.attentions.0.to_q.weight"] == (8, 8)
    assert "decoder.up_blocks.0.attentions.1.to_out.0.bias" in names
    assert "encoder.down_blocks.0.attentions.0.to_q.weight" not in names
    bare = tensor_shapes(dataclasses.replace(TINY, mid_attention=False, quant_conv=False, post_quant_conv=False))
    assert not [name for name in bare if "quant" in name or "attention" in name]
    model = from_tensors(attention, random_tensors(attention))
    assert nnx.eval_shape(lambda m, z: m.decode(z), model, jnp.zeros((1, 4, 6, 4))).shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.conv_out.bias"), r"decoder\.conv_out\.bias missing"),
        (lambda t: t.update({"loss.weight": np.zeros(3, np.float32)}), r"loss\.weight not expected"),
        (
            lambda t: t.update({"quant_conv.bias": np.zeros(9, np.float32)}),
            r"quant_conv\.bias has shape \(9,\).*\(8,\)",
        ),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("encoder")], "and .* more tensors missing"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change, message: str) -> None:
    tensors = random_tensors(TINY)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text((GOLDEN / "vae_old_names.json").read_text())
    with pytest.raises(UserError, match=message):
        load_vae(tmp_path / "x.safetensors")


def test_places_without_an_autoencoder_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no autoencoder at .*nowhere"):
        load_vae(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nothing is fetched for you"):
        load_vae(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.json beside"):
        load_vae(tmp_path)


def test_a_diffusers_folder_loads_and_its_hash_is_of_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(random_tensors(TINY), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text((GOLDEN / "vae_old_names.json").read_text())
    model, first = load_vae(tmp_path)  # The folder of a whole pipeline holds it as vae/.
    assert model.config == TINY
    save_file(
        random_tensors(TINY) | {"quant_conv.bias": np.ones(8, np.float32)},
        folder / "diffusion_pytorch_model.safetensors",
    )
    assert load_vae(folder)[1] != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn 'relu'"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "DownEncoderBlock2D"]}, "'CrossAttnDownBlock2D' is not known"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "1 up_block_types for 2"),
        ({"norm_num_groups": 3}, "not divisible by norm_num_groups 3"),
    ],
)
def test_configs_that_are_not_understood_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    raw = json.loads((GOLDEN / "vae_old_names.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no block_out_channels"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("scale", "shift"), [(None, None), (0.18215, None), (0.13025, None), (1.5305, 0.0609), (0.3611, 0.1159)]
)
def test_scale_and_shift_are_the_autoencoders_own(tmp_path: Path, scale: float | None, shift: float | None) -> None:
    """Stable Diffusion's, unsaid and said, SDXL's, Stable Diffusion 3's and FLUX's: (z - shift) * scale, and its inverse."""
    raw = json.loads((GOLDEN / "vae_old_names.json").read_text()) | {"scaling_factor": scale, "shift_factor": shift}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(random_tensors(TINY), tmp_path / "diffusion_pytorch_model.safetensors")
    model, identity = load_vae(tmp_path)
    latents = np.linspace(-5, 5, 11, dtype=np.float32)
    expected = (latents - (shift or 0)) * (scale or 0.18215)
    np.testing.assert_allclose(model.config.scaled(latents), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(model.config.unscaled(model.config.scaled(latents)), latents, rtol=1e-6, atol=1e-6)
    plain = hashlib.sha256((tmp_path / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert (identity == plain) == (scale in (None, 0.18215) and shift is None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling_factor": 0}, "scaling_factor is 0, expected a number above 0"),
        ({"scaling_factor": "0.2"}, "scaling_factor is '0.2', expected a number"),
        ({"shift_factor": float("nan")}, "shift_factor is nan, expected a number"),
        ({"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}, "latents_mean scales each channel by itself"),
        ({"latents_std": [2.0] * 4}, "latents_std scales each channel by itself"),
    ],
)
def test_factors_that_are_not_understood_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    raw = json.loads((GOLDEN / "vae_old_names.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    "change",
    [{"norm_num_groups": 0}, {"layers_per_block": 10**9}, {"block_out_channels": 8}, {"block_out_channels": []}, {"in_channels": "3"},
     {"block_out_channels": [2**40]}, {"block_out_channels": [4] * 99}, {"latent_channels": None}],
)  # fmt: skip
def test_impossible_sizes_are_refused_before_anything_is_made(tmp_path: Path, change: dict) -> None:
    raw = json.loads((GOLDEN / "vae_old_names.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=r"is no number that an autoencoder has|holds \d+ widths"):
        read_config(tmp_path / "config.json")
