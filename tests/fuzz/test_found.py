"""Faults that mutants found, each as the smallest file that shows it: refused in one line."""

import contextlib
import io
import json
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from readers import READERS

from dit.data.images import BrokenImage, open_rgb
from dit.errors import UserError
from dit.store.archives import unpacked


def made(name, tmp_path):
    reader = READERS[name]
    path = reader.make(tmp_path)
    return reader, path, path.read_bytes()


def refused(reader, path, data, message):
    path.write_bytes(data)
    with pytest.raises((UserError, BrokenImage), match=message) as caught:
        reader.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["samples", "kept-samples"])
@pytest.mark.parametrize(
    "header", ["{'descr': '<f4\n", "{'shape': (4,", "(" * 5000, "{'descr': [], 'fortran_order': 0, 'shape': ()}"]
)
def test_headers_of_arrays_that_are_no_python(tmp_path, name, header):
    reader, path, _ = made(name, tmp_path)
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    names = ("arr_0", "images", "labels")
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w") as archive:
            for one in names:
                archive.writestr(f"{one}.npy", array)
        refused(reader, path, out.getvalue(), "cannot be read|not a whole")


def test_an_image_is_not_read_beyond_its_end(tmp_path):
    """A chunk that says it has two gigabytes made the decoder take them."""
    _, path, data = made("png", tmp_path)
    at = data.index(b"IDAT")
    start, length = at + 4, struct.unpack(">I", data[at - 4 : at])[0]
    body = data[start : start + length]
    path.write_bytes(
        data[: at - 4] + struct.pack(">I", 2**31 - 1) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    )
    tracemalloc.start()
    with contextlib.suppress(BrokenImage):
        open_rgb(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(settings=1.5), "has format 1.5"),
        (lambda value: value["shards"][0].update(records={}), "not a manifest of latents"),
        (lambda value: value["shards"][0].update(broken=[[1]]), "not a manifest of latents"),
        (lambda value: value.update(shards=None), "not a manifest of latents"),
        (lambda value: value["settings"].update(classes=5), "not a manifest of latents"),
    ],
)
def test_manifests_of_latents(tmp_path, change, message):
    reader, path, data = made("latents-manifest", tmp_path)
    value = json.loads(data)
    change(value)
    refused(reader, path, json.dumps(value).encode(), message)
    refused(reader, path, data.replace(b'"vae"', b'"\xff"', 1).replace(b"{", b"\xfe", 1), "damaged")


def test_an_archive_that_changed_is_not_taken_up_to_the_change(tmp_path, monkeypatch):
    """A damaged header ended the archive, before the checksum that stands at its end."""
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    _, path, data = made("archive", tmp_path)
    plain = bytearray(lzma.decompress(data))
    stored = lzma.compress(bytes(plain), check=lzma.CHECK_CRC64, preset=0)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        second = archive.getmembers()[1].offset
    plain[second + 148] ^= 1  # the header's own checksum
    other = lzma.compress(bytes(plain), check=lzma.CHECK_CRC64, preset=0)
    path.write_bytes(other[:-40] + stored[-40:])  # with the checksum of what it was
    with pytest.raises(UserError, match="no sound archive"):
        unpacked(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("prices", b"a = " + b"[" * 100_000, "is not TOML"),
        ("vae-config", None, "down_block_types is 3"),
        ("checkpoint", b'{"digest": "x", "step": NaN}', "unreadable manifest"),
        ("wandb-table", b"Name,State\none,finished,3\n", "row 1 has 3 cells where the header has 2"),
        ("wandb-whole", b"[" * 100_000, "not readable as an export"),
    ],
)
def test_others(tmp_path, name, data, message):
    reader, path, sound = made(name, tmp_path)
    refused(reader, path, data or json.dumps({**json.loads(sound), "down_block_types": 3}).encode(), message)


def test_rows_that_hold_no_numbers_of_samples(tmp_path):
    reader, path, _ = made("kept-samples", tmp_path)
    np.savez(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(2, int))
    with pytest.raises(UserError, match="holds no samples with their labels"):
        reader.read(path)
