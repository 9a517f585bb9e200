"""Cropping against a resampler written here from its definition, on photographs that packages ship; robust opening."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL
import pytest
import skimage
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from dit.data.image_sets import open_images
from dit.data.image_tree import find_images
from dit.data.images import BrokenImage, center_crop, load_square, open_rgb, to_model, to_uint8
from dit.errors import UserError
from dit.train.restore import is_checkpoint

SKIMAGE = Path(skimage.__file__).parent / "data"


def photographs() -> dict[str, np.ndarray]:
    names = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg")
    found = {name: np.asarray(Image.open(SKIMAGE / name).convert("RGB")) for name in names if (SKIMAGE / name).exists()}
    samples = load_sample_images()
    return found | dict(zip(map(Path, samples.filenames), samples.images))


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def resample(pixels: np.ndarray, height: int, width: int, kernel, support: float) -> np.ndarray:
    """Separable antialiased resampling, columns first, rounding to uint8 after each pass."""
    for axis, target in ((1, width), (0, height)):
        source = pixels.shape[axis]
        scale = source / target
        stretch = max(scale, 1.0)
        center = (np.arange(target) + 0.5) * scale
        first = np.maximum((center - support * stretch + 0.5).astype(int), 0)
        last = np.minimum((center + support * stretch + 0.5).astype(int), source)
        at = np.arange(source)
        weights = kernel((at + 0.5 - center[:, None]) / stretch) * ((at >= first[:, None]) & (at < last[:, None]))
        weights /= weights.sum(axis=1, keepdims=True)
        mixed = np.moveaxis(np.tensordot(weights, pixels.astype(float), (1, axis)), 0, axis)
        pixels = np.clip(np.floor(mixed + 0.5), 0, 255).astype(np.uint8)
    return pixels


def independent_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The spec of the crop, on arrays."""
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resample(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, box, 0.5)
    scale = size / min(pixels.shape[:2])
    pixels = resample(pixels, round(pixels.shape[0] * scale), round(pixels.shape[1] * scale), cubic, 2.0)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [256, 100, 32])
def test_crops_agree_with_an_independent_resampler(size: int) -> None:
    photos = photographs()
    assert len(photos) >= 2
    for name, pixels in photos.items():
        ours = center_crop(Image.fromarray(pixels), size).astype(int)
        theirs = independent_crop(pixels, size).astype(int)
        # Pillow's weights have 22 bits, so a sum within 1e-5 of a half may round the other way.
        assert np.abs(ours - theirs).max() <= 1, name
        assert (ours != theirs).mean() < 3e-3, name


def test_halving_by_box_is_the_mean_of_four_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    expected = np.floor(pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) + 0.5)
    crop = center_crop(Image.fromarray(pixels), 32).astype(int)
    assert np.abs(crop - expected).max() <= 1  # One rounding per direction, as the reference.


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 500), (500, 3), (33, 32), (63, 65), (64, 64), (257, 255)])
def test_every_shape_gives_the_square(width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert center_crop(Image.fromarray(pixels), 32).shape == (32, 32, 3)


def test_the_crop_is_central_and_leans_to_the_top_left() -> None:
    columns = np.tile(np.arange(37, dtype=np.uint8)[None, :, None], (32, 1, 3))
    np.testing.assert_array_equal(center_crop(Image.fromarray(columns), 32)[0, :, 0], np.arange(2, 34))
    rows = np.ascontiguousarray(columns.swapaxes(0, 1))
    np.testing.assert_array_equal(center_crop(Image.fromarray(rows), 32)[:, 0, 0], np.arange(2, 34))


def test_all_kinds_of_files_open_as_rgb(tmp_path: Path) -> None:
    photo = Image.fromarray(load_sample_images().images[0]).resize((80, 60))
    rgb = np.asarray(photo)
    photo.convert("L").save(tmp_path / "grey.jpg")
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
    photo.convert("P").save(tmp_path / "palette.png", transparency=0)
    photo.convert("P").save(tmp_path / "palette_bytes.png", transparency=bytes(range(256)))
    photo.convert("RGBA").save(tmp_path / "alpha.png")
    photo.convert("LA").save(tmp_path / "grey_alpha.png")
    photo.convert("1").save(tmp_path / "bits.png")
    for path in sorted(tmp_path.iterdir()):
        image = open_rgb(path)
        assert (image.mode, image.size) == ("RGB", (80, 60)), path.name
        assert load_square(path, 32).dtype == np.uint8
        if path.name != "bits.png":
            difference = np.abs(np.asarray(image).astype(int).mean(axis=2) - rgb.mean(axis=2))
            assert difference.mean() < 16, path.name
    grey = np.asarray(open_rgb(tmp_path / "grey.jpg"))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_array_equal(np.asarray(open_rgb(tmp_path / "alpha.png")), rgb)


def test_the_exif_rotation_is_ignored_as_the_reference_ignores_it(tmp_path: Path) -> None:
    photo = Image.fromarray(load_sample_images().images[0]).resize((80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "rotated.jpg", exif=exif)
    photo.save(tmp_path / "plain.jpg")
    rotated, plain = open_rgb(tmp_path / "rotated.jpg"), open_rgb(tmp_path / "plain.jpg")
    assert rotated.size == (80, 60)
    np.testing.assert_array_equal(np.asarray(rotated), np.asarray(plain))


def test_broken_files_say_why(tmp_path: Path) -> None:
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    cases = {"cut.jpg": data[: len(data) // 2], "text.jpg": b"<html>", "empty.jpg": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenImage, match="truncated"):
        open_rgb(tmp_path / "cut.jpg")
    for name in ("text.jpg", "empty.jpg"):
        with pytest.raises(BrokenImage, match="not an image"):
            open_rgb(tmp_path / name)
    with pytest.raises(BrokenImage, match="No such file"):
        open_rgb(tmp_path / "missing.jpg")


def test_an_image_of_absurd_size_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImage, match="exceeds limit"):
        open_rgb(tmp_path / "large.png")


def test_uint8_is_truncated_not_rounded() -> None:
    values = np.array([-2.0, -1.0, -0.9961, -0.0001, 0.0, 0.0039, 0.0118, 0.996, 1.0, 7.0], np.float32)
    expected = [int(max(0.0, min(255.0, 127.5 * float(v) + 128))) for v in values]
    assert expected[1] == 0 and expected[4] == 128 and expected[8] == 255
    np.testing.assert_array_equal(to_uint8(values), expected)
    with pytest.raises(UserError, match="not numbers"):
        to_uint8(np.array([0, np.nan], np.float32))


def test_there_and_back_changes_no_pixel() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    there = to_model(pixels)
    assert (there[0], there[255]) == (-1.0, 1.0)
    # Truncating 127.5 x + 128 adds one half and drops the fraction: it undoes x = p / 127.5 - 1 exactly.
    np.testing.assert_array_equal(to_uint8(np.asarray(there)), pixels)
    np.testing.assert_allclose(np.asarray(to_model(jnp.asarray(pixels))), there, rtol=0, atol=1.2e-7)


def test_the_crop_is_the_reference_implementations_bit_for_bit():
    """The golden file holds hashes of what `center_crop_arr` of the DiT release makes of these photographs."""
    recorded = json.loads((Path(__file__).parents[1] / "golden" / "center_crop.json").read_text())
    if PIL.__version__ != recorded["pillow"]:
        pytest.skip(f"recorded with Pillow {recorded['pillow']}; another one may round its filters otherwise")
    china, flower = load_sample_images().images
    data = skimage.data
    photos = {
        "china": china,
        "flower": flower,
        "astronaut": data.astronaut(),
        "coffee": data.coffee(),
        "cat": data.chelsea(),
    }
    for name, expected in recorded["sha256"].items():
        photo, size = name.split("-")
        pixels = center_crop(Image.fromarray(photos[photo]), int(size))
        assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16] == expected, name


def grey_ramp() -> np.ndarray:
    return np.arange(64, dtype=np.uint8).reshape(8, 8) * 3


def write_tiff(path: Path, pixels: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> Path:
    """A little-endian TIFF of one strip, byte by byte: Pillow cannot write them all."""
    data = pixels.tobytes()
    height, width = pixels.shape
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    entries += [(277, 1), (278, height), (279, len(data)), (339, sample_format)]
    body = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in entries)
    where = 8 + len(data)
    directory = struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", where) + data + directory)
    return path


def test_sixteen_bits_give_their_upper_eight(tmp_path: Path) -> None:
    grey = grey_ramp()
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.tif")
    Image.fromarray(deep.astype(">u2")).save(tmp_path / "c.tif")
    (tmp_path / "d.pgm").write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    write_tiff(tmp_path / "e.tif", deep, 16)
    write_tiff(tmp_path / "f.tif", 65535 - deep, 16, photometric=0)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(np.asarray(open_rgb(path)), np.repeat(grey[..., None], 3, 2), err_msg=path.name)


def test_values_without_a_white_are_refused(tmp_path: Path) -> None:
    grey = grey_ramp()
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "int.tif")
    write_tiff(tmp_path / "signed.tif", grey.astype(np.int16) * 128, 16, sample_format=2)
    write_tiff(tmp_path / "wide.tif", grey.astype(np.uint32) * 2**24, 32)
    for path, kind in (
        ("float", "floating-point"),
        ("int", "signed 32-bit"),
        ("signed", "signed 16-bit"),
        ("wide", "32-bit"),
    ):
        with pytest.raises(BrokenImage, match=f"^{kind} values, of which no file says what is white"):
            open_rgb(tmp_path / f"{path}.tif")


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for name in ("a.png", "b.tiff", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(BrokenImage, match="2 frames, expected one image"):
            open_rgb(tmp_path / name)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 30_000), (7, 65_000)])
def test_an_image_too_thin_to_scale_is_broken(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "thin.png")
    with pytest.raises(BrokenImage, match="too thin"):
        load_square(tmp_path / "thin.png", 256)


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0))
    (tmp_path / "large.png").write_bytes(header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(BrokenImage, match=r"10000x9000 pixels|exceeds limit"):
        open_rgb(tmp_path / "large.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HIDDEN = (
    "._a.png", ".hidden.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "@eaDir/a.png", ".git/x/a.png", "x/._b.jpg",
    "$RECYCLE.BIN/a.png", "Thumbs.db", ".DS_Store",
)  # fmt: skip


def test_one_list_of_rules_says_what_is_an_image(tmp_path: Path) -> None:
    """The same files for `encode` (class folders), and for `evaluate` and `reference` (any folder)."""
    photo = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("cat/a.png", "cat/deep/b.PNG", "dog/c.png", "cat/notes.txt", "dog/labels.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name, format="PNG")
    plain = find_images(tmp_path)
    for folder in ("cat", "."):
        for name in HIDDEN:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            photo.save(tmp_path / folder / name, format="PNG")
    found = find_images(tmp_path)
    assert (found.classes, found.images, found.identity) == (("cat", "dog"), plain.images, plain.identity)
    assert plain.said == "3 images, left out 2 without an image's ending; 2 classes"
    images = open_images(str(tmp_path), 3)
    assert len(images) == 3 and sum(len(batch) for batch in images.batches(2, 0, 3)) == 3
    hidden = 2 * len(HIDDEN)
    assert images.said == f"{tmp_path}: 3 images, left out {hidden} hidden or the system's, 2 without an image's ending"
    assert found.said.startswith("3 images, left out ") and "hidden" in found.said
    photo.save(tmp_path / "loose.png")
    assert "1 in no class folder" in find_images(tmp_path).said


def test_images_with_a_configuration_beside_them_are_images(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for text in ('{"cfg_scale": 1.5}', "[]", "{", '{"_class_name": "DiTPipeline"}', '{"model": {}}'):
        (tmp_path / "config.json").write_text(text)
        assert not is_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "transformer").mkdir()
    assert not is_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"hash": "0123", "model": {}}')
    assert is_checkpoint(tmp_path)
