"""References out of every kind of source, and the refusal of what was made otherwise."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_extractor import some_images, tiny_extractor

from dit.data.image_sets import open_images
from dit.errors import UserError
from dit.score import reference
from dit.score.metrics.moments import Moments


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    np.savez(tmp_path / "batch.npz", arr_0=some_images(60, 0))
    return tmp_path / "batch.npz"


def _as_inception(extractor):
    return dataclasses.replace(extractor, name="inception-2015", resize="tf1-bilinear-299")


def test_statistics_are_those_of_all_images(batch: Path) -> None:
    extractor = tiny_extractor()
    made = reference.load(str(batch), extractor, 16)
    features = extractor.extract(some_images(60, 0))
    np.testing.assert_allclose(
        made.pooled.covariance, np.cov(features.pooled.astype(np.float64), rowvar=False), rtol=1e-10
    )
    assert made.spatial is not None and made.spatial.mean.shape == (10,)
    np.testing.assert_array_equal(made.features, features.pooled)
    assert made.made_by["num_images"] == 60


def test_folder_and_compressed_batch_give_the_same(batch: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    for i, image in enumerate(some_images(60, 0)):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    np.savez_compressed(tmp_path / "small.npz", arr_0=some_images(60, 0))
    made = [
        reference.load(str(path), tiny_extractor(), 16) for path in (batch, tmp_path / "images", tmp_path / "small.npz")
    ]
    for other in made[1:]:
        np.testing.assert_array_equal(other.pooled.covariance, made[0].pooled.covariance)


def test_streaming_starts_anywhere(batch: Path) -> None:
    parts = list(open_images(str(batch), 3).batches(7, 13, 40))
    np.testing.assert_array_equal(np.concatenate(parts), some_images(60, 0)[13:40])
    assert [len(part) for part in parts] == [7, 7, 7, 6]


def test_saved_and_loaded(batch: Path, tmp_path: Path) -> None:
    made = reference.load(str(batch), tiny_extractor(), 16)
    reference.save(tmp_path / "ref.npz", made)
    read = reference.load(str(tmp_path / "ref.npz"), tiny_extractor(), 16)
    assert read.sha256 == made.sha256 and read.made_by == made.made_by
    np.testing.assert_array_equal(read.pooled.covariance, made.pooled.covariance)
    np.testing.assert_array_equal(read.features, made.features)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dataclasses.replace(tiny_extractor(), name="huge"), "by extractor tiny, samples are scored by extractor huge"),
        (tiny_extractor(seed=1), "with weights 0+, samples are scored with weights 0+1"),
        (tiny_extractor(resize="bicubic"), "with resize none, samples are scored with resize bicubic"),
    ],
)
def test_what_was_made_otherwise_is_refused(batch: Path, tmp_path: Path, other, message: str) -> None:
    reference.save(tmp_path / "ref.npz", reference.load(str(batch), tiny_extractor(), 16))
    with pytest.raises(UserError, match=message):
        reference.load(str(tmp_path / "ref.npz"), other, 16)


def test_adm_batch_with_statistics(tmp_path: Path) -> None:
    whole, shown = some_images(80, 0), some_images(80, 0)[:30]
    extractor = _as_inception(tiny_extractor())
    features = extractor.extract(whole)
    pooled, spatial = (Moments(x.shape[1]).update(x).gaussian() for x in (features.pooled, features.spatial))
    path = tmp_path / "adm.npz"
    np.savez(path, arr_0=shown, mu=pooled.mean, sigma=pooled.covariance, mu_s=spatial.mean, sigma_s=spatial.covariance)
    read = reference.load(str(path), extractor, 16)
    np.testing.assert_array_equal(
        read.pooled.covariance, pooled.covariance
    )  # of all 80, not of the 30 images in the file
    assert read.features.shape == (30, 12) and read.made_by["num_images"] is None
    with pytest.raises(UserError, match="by extractor inception-2015, samples are scored by extractor tiny"):
        reference.load(str(path), tiny_extractor(), 16)


def test_bare_statistics_must_be_declared(tmp_path: Path) -> None:
    path = tmp_path / "fid.npz"
    np.savez(path, mu=np.zeros(12), sigma=np.eye(12))
    extractor = _as_inception(tiny_extractor())
    with pytest.raises(UserError, match="do not say what made them: declare it with"):
        reference.load(str(path), extractor, 16)
    for resize in ("tf1-bilinear-299", "pytorch-bilinear-299"):
        reference.save(tmp_path / f"{resize}.npz", reference.declare(path, "inception-2015", resize))
    assert reference.load(str(tmp_path / "tf1-bilinear-299.npz"), extractor, 16).spatial is None
    with pytest.raises(
        UserError, match="with resize pytorch-bilinear-299, samples are scored with resize tf1-bilinear-299"
    ):
        reference.load(str(tmp_path / "pytorch-bilinear-299.npz"), extractor, 16)


def test_protocol_inside_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", arr_0=some_images(5, 0), protocol=json.dumps({"sampler": "ddim"}))
    assert open_images(str(tmp_path / "samples.npz"), 3).protocol == {"sampler": "ddim"}


def test_grey_data_sets_are_repeated_for_colour_networks() -> None:
    images = open_images("digits", 3)
    (first,) = images.batches(1, 0, 1)
    assert len(images) == 1797 and first.shape == (1, 8, 8, 3)
    assert (first[..., 0] == first[..., 2]).all()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_batch(batch: Path, share: float) -> None:
    whole = batch.read_bytes()
    batch.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="cut short"):
        reference.load(str(batch), tiny_extractor(), 16)


def test_flipped_byte_in_a_batch(batch: Path) -> None:
    whole = bytearray(batch.read_bytes())
    whole[len(whole) // 2] ^= 1
    batch.write_bytes(bytes(whole))
    with pytest.raises(UserError, match=r"not a whole \.npz file"):
        reference.load(str(batch), tiny_extractor(), 16)


def test_sources_that_hold_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((3, 8, 8, 3)))
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("other.npz", "expected images as arr_0"),
        ("floats.npz", "holds float64"),
        ("empty", "no images in"),
        ("nowhere.npz", "no file, folder or data set"),
    ):
        with pytest.raises(UserError, match=message):
            reference.load(str(tmp_path / name), tiny_extractor(), 16)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(4), "sigma": np.eye(4), "made_by": "{"}, "'made_by' is not JSON"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "made_by": "5"}, "'made_by' lacks some of extractor"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "made_by": '{"extractor": "x"}'}, "'made_by' lacks some of extractor"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1), "mu_s": np.zeros(1), "sigma_s": np.eye(1)}, "'mu' holds <U1"),
    ],
)
def test_statistics_of_another_making_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(UserError, match=message):
        reference.load(str(tmp_path / "odd.npz"), tiny_extractor(), 16)


MADE_BY = {
    "extractor": "tiny", "extractor_sha256": "0", "resize": "none", "num_images": 60, "source": "x", "source_sha256": "1",
}  # fmt: skip
LOPSIDED = np.diag(np.ones(12)) + np.eye(12, k=1) * 0.1
SADDLE = np.diag([-0.01, *np.ones(11)])


@pytest.mark.parametrize(
    ("arrays", "made_by", "message"),
    [
        ({"mu": np.full(12, np.nan)}, {}, "'mu' holds values that are not finite"),
        ({"sigma": np.diag(np.full(12, np.inf))}, {}, "'sigma' holds values that are not finite"),
        ({"features": np.full((3, 12), np.nan, np.float32)}, {}, "'features' holds values that are not finite"),
        ({"features": np.zeros((3, 11), np.float32)}, {}, r"'features' has shape \(3, 11\), expected \(images, 12\)"),
        ({"features": np.zeros(12, np.float32)}, {}, r"'features' has shape \(12,\)"),
        ({"sigma": np.eye(11)}, {}, r"'mu' has shape \(12,\), 'sigma' \(11, 11\), expected"),
        ({"mu": np.zeros((12, 1))}, {}, r"'mu' has shape \(12, 1\)"),
        ({"sigma": LOPSIDED}, {}, "'sigma' is not symmetric"),
        ({"sigma": -np.eye(12)}, {}, "'sigma' has a negative variance"),
        ({"sigma": SADDLE}, {}, "'sigma' has a negative variance"),
        ({"mu_s": np.zeros(3), "sigma_s": -np.eye(3)}, {}, "'sigma_s' has a negative variance"),
        ({"mu_s": np.zeros(3)}, {}, "'mu_s' has shape"),
        ({}, {"num_images": -4}, "num_images is '-4', expected a whole number above 0"),
        ({}, {"num_images": "many"}, "num_images is 'many'"),
        ({}, {"num_images": 3.5}, "num_images is '3.5'"),
        ({}, {"num_images": True}, "num_images is 'True'"),
        ({}, {"num_images": 0}, "num_images is '0'"),
        ({}, {"source": 3}, "its source is '3', expected a text"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path: Path, arrays: dict, made_by: dict, message: str) -> None:
    whole = {"mu": np.zeros(12), "sigma": np.eye(12), "features": np.zeros((5, 12), np.float32)} | arrays
    np.savez(tmp_path / "x.npz", **whole, made_by=json.dumps(MADE_BY | made_by))
    with pytest.raises(UserError, match=message):
        reference.load(str(tmp_path / "x.npz"), tiny_extractor(), 16)


def test_singular_and_rounded_covariances_are_some_distributions(tmp_path: Path) -> None:
    few = np.random.default_rng(0).standard_normal((5, 300))
    for sigma in (np.cov(few.T), np.cov(few.T).astype(np.float32), np.zeros((300, 300))):
        np.savez(tmp_path / "x.npz", mu=np.zeros(300), sigma=sigma)
        assert reference.declare(tmp_path / "x.npz", "inception-2015", "none").pooled.covariance.shape == (300, 300)


def bomb(path: Path, name: str, header_shape: tuple[int, ...], size: int, dtype: str = "<f8") -> Path:
    """An archive whose entry unpacks to `size` zeros behind a header of its own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": header_shape})
        for _ in range(size >> 20):
            file.write(bytes(2**20))
    return path


def test_archives_that_unpack_to_much_are_refused_before(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], object), sigma=np.eye(1), mu_s=np.zeros(1), allow_pickle=True)
    cases = (
        (bomb(tmp_path / "header.npz", "mu", (2**40,), 2**20), "'mu' holds float64 of shape"),
        (bomb(tmp_path / "negative.npz", "mu", (-1,), 2**20), "'mu' holds float64 of shape"),
        (bomb(tmp_path / "image.npz", "arr_0", (2, 2**15, 2**15, 3), 2**20, "|u1"), "bytes for images of shape"),
        (bomb(tmp_path / "many.npz", "arr_0", (2**30, 8, 8, 3), 2**20, "|u1"), "bytes for images of shape"),
        (tmp_path / "objects.npz", "'mu' holds object"),
    )
    for path, message in cases:
        with pytest.raises(UserError, match=message):
            open_or_declare(path)
    np.savez_compressed(tmp_path / "said.npz", arr_0=some_images(2, 0), protocol="0" * 2**21)
    with pytest.raises(UserError, match="declares 8,388,736 bytes of protocol"):
        open_images(str(tmp_path / "said.npz"), 3)


def open_or_declare(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        images = "arr_0.npy" in archive.namelist()
    if images:
        open_images(str(path), 3)
    else:
        reference.declare(path, "inception-2015", "none")
