"""Batches of latents: the same whatever the process split, fresh each epoch, and never from a damaged shard."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dit.data.latents import LatentDataset, LatentSource
from dit.data.shards import (
    MANIFEST,
    Manifest,
    Record,
    Settings,
    ShardWriter,
    finished_shard,
    open_latents,
    pack,
    shard_name,
    to_json,
    unpack,
)
from dit.errors import UserError
from dit.store.files import write_text
from dit.weights.vae import LATENT_SCALE

COUNTS = (16, 0, 13)


def record(index: int) -> Record:
    """Moments that give the index away: mean = index for the image, -index for the mirror, std 0.5 and 0.25."""
    moments = np.empty((2, 2, 2, 2, 4), np.float16)
    moments[0, 0], moments[1, 0] = index, -index
    moments[0, 1], moments[1, 1] = 0.5, 0.25
    return Record(moments, index % 3, f"class/{index}.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """29 records in three shards; the middle one is empty, as if all its images had been broken."""
    settings = Settings("vae", 16, 2, 4, LATENT_SCALE, "float32", 48, "images", 16, ("a", "b", "c"))
    indices = itertools.count()
    shards = []
    for i, count in enumerate(COUNTS):
        writer = ShardWriter(tmp_path, shard_name(i))
        for _ in range(count):
            writer.write(record(next(indices)))
        shards.append(writer.finish([("class/bad.jpg", "not an image")] if count < 16 else []))
    write_text(tmp_path / MANIFEST, to_json(Manifest(settings, tuple(shards))))
    return tmp_path


def test_a_record_survives_packing() -> None:
    original = Record(np.random.default_rng(0).normal(size=(2, 2, 3, 3, 4)).astype(np.float16), 7, "n01/größe.JPEG")
    copy = unpack(pack(original), (2, 2, 3, 3, 4))
    np.testing.assert_array_equal(copy.moments, original.moments)
    assert (copy.label, copy.image_id) == (7, "n01/größe.JPEG")


def test_records_are_found_across_shards(folder: Path) -> None:
    source = LatentSource(*open_latents(folder))
    assert len(source) == 29
    assert [source[i].image_id for i in (0, 15, 16, 28)] == [f"class/{i}.jpg" for i in (0, 15, 16, 28)]


def test_any_number_of_processes_sees_the_same_batch(folder: Path) -> None:
    whole = LatentDataset(folder, 8, seed=3)
    for split in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [4, 5], [2, 3], [6, 7]], [[7]]):
        parts = [LatentDataset(folder, 8, seed=3, rows=np.array(rows, np.int32)) for rows in split]
        for step in (0, 5, 1000):
            latents, labels = whole.batch(step)
            for rows, part in zip(split, parts):
                some, some_labels = part.batch(step)
                np.testing.assert_array_equal(some, latents[rows])
                np.testing.assert_array_equal(some_labels, labels[rows])


def test_the_step_is_the_whole_state(folder: Path) -> None:
    straight = LatentDataset(folder, 8, seed=0)
    expected = [straight.batch(step) for step in range(6)]
    for order in ([5, 2, 3, 0], [3, 3, 4]):
        resumed = LatentDataset(folder, 8, seed=0, prefetch=1)
        for step in order:
            for ours, theirs in zip(resumed.batch(step), expected[step]):
                np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(LatentDataset(folder, 8, seed=1).batch(0)[0], expected[0][0])


def test_shapes_types_and_labels(folder: Path) -> None:
    dataset = LatentDataset(folder, 8, seed=0)
    latents, labels = dataset.batch(0)
    assert (latents.shape, latents.dtype) == ((8, 2, 2, 4), np.float32)
    assert (labels.shape, labels.dtype) == ((8,), np.int32)
    assert (dataset.example_shape, dataset.num_classes, len(dataset)) == ((2, 2, 4), 3, 29)


def test_an_epoch_holds_every_record_once_in_a_new_order(folder: Path) -> None:
    dataset = LatentDataset(folder, 29, seed=0)
    epochs = [[dataset._order[epoch * 29 + i].image_id for i in range(29)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(f"class/{i}.jpg" for i in range(29)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    labels = dataset.batch(1)[1]
    assert Counter(labels.tolist()) == Counter(i % 3 for i in range(29))


def test_the_posterior_and_the_mirror_are_drawn_afresh(folder: Path) -> None:
    dataset = LatentDataset(folder, 29, seed=0)
    batches = [dataset.batch(epoch) for epoch in range(12)]
    order = [[int(dataset._order[e * 29 + i].image_id[6:-4]) for i in range(29)] for e in range(12)]
    mirrored, noise = [], {False: [], True: []}
    for (latents, _), indices in zip(batches, order):
        for row, index in zip(latents / LATENT_SCALE, indices):
            if index < 3:
                continue  # Too close to zero to tell the sign.
            flip = bool(row.mean() < 0)
            mirrored.append(flip)
            noise[flip].append(row - (-index if flip else index))
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(len(mirrored))
    for flip, std in ((False, 0.5), (True, 0.25)):
        values = np.concatenate([n.ravel() for n in noise[flip]])
        assert abs(values.mean()) < 5 * std / np.sqrt(values.size)
        assert abs(values.std() / std - 1) < 0.05
        assert len(np.unique(values)) > 0.97 * values.size  # float32 ties near 28


def test_arguments_that_cannot_be_met_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        LatentDataset(folder, 0, seed=0)
    with pytest.raises(UserError, match=r"rows \[7, 8\] are not among the 0..7"):
        LatentDataset(folder, 8, seed=0, rows=np.array([7, 8], np.int32))
    with pytest.raises(UserError, match="seed -1"):
        LatentDataset(folder, 8, seed=-1)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[65536 + 500 if len(data) > 66036 else 500] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"corrupted \(outside its records\): sha256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "bytes; its manifest says"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_shard_is_named(folder: Path, damage, message: str) -> None:
    damage(folder / shard_name(2))
    with pytest.raises(UserError, match=rf"shard .*shard-00002\.arrayrecord.*{message}"):
        LatentDataset(folder, 8, seed=0)


def test_damage_that_happens_later_is_named_when_it_is_read(folder: Path) -> None:
    path = folder / shard_name(0)
    data = bytearray(path.read_bytes())
    at = data.find(pack(record(5))[:64])
    data[at + 3] ^= 1
    path.write_bytes(data)
    source = LatentSource(*open_latents(folder, verify=False))
    assert source[20].image_id == "class/20.jpg"
    with pytest.raises(UserError, match=r"shard-00000\.arrayrecord is corrupted: record 5"):
        source[5]
    with pytest.raises(UserError, match=r"shard-00000\.arrayrecord is corrupted \(record 5 at byte [\d,]+\): sha256"):
        open_latents(folder)


def test_a_manifest_that_is_not_one_is_refused(folder: Path) -> None:
    good = json.loads((folder / MANIFEST).read_text())
    cases = {
        "damaged": "{",
        "expected what `dit encode` writes": "[]",
        "format 99": json.dumps(good | {"settings": good["settings"] | {"format": 99}}),
        "lists 2 shards; expected 3": json.dumps(good | {"shards": good["shards"][:2]}),
        "not a manifest": json.dumps({"settings": good["settings"]}),
    }
    for message, text in cases.items():
        (folder / MANIFEST).write_text(text)
        with pytest.raises(UserError, match=message):
            open_latents(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"no latents at .*dit encode"):
        open_latents(folder)


def test_a_changed_record_changes_the_identity(folder: Path) -> None:
    _, manifest = open_latents(folder)
    assert manifest.identity == open_latents(folder)[1].identity
    raw = json.loads((folder / MANIFEST).read_text())
    raw["shards"][0]["sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(raw))
    assert open_latents(folder, verify=False)[1].identity != manifest.identity


def test_shards_at_a_url_are_copied_once_and_checked(folder: Path, tmp_path: Path) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.put(str(folder), "/bucket/latents", recursive=True)
    cache = tmp_path / "cache"
    local, manifest = open_latents("memory://bucket/latents", cache=cache)
    assert local.parent == cache
    assert LatentSource(local, manifest)[28].image_id == "class/28.jpg"
    before = (local / shard_name(0)).stat().st_mtime_ns
    open_latents("memory://bucket/latents", cache=cache)
    assert (local / shard_name(0)).stat().st_mtime_ns == before
    bucket.rm(f"/bucket/latents/{shard_name(2)}")
    with pytest.raises(UserError, match=r"cannot copy .*shard-00002\.arrayrecord"):
        open_latents("memory://bucket/latents", cache=tmp_path / "other")
    bucket.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "..", "a/b", "a\\b", ".bashrc", "a\nb", "", "x" * 300, 7, None])
def test_a_shards_name_never_leads_out_of_the_cache(folder: Path, tmp_path: Path, name: object) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    raw["shards"][0]["name"] = name
    (folder / MANIFEST).write_text(json.dumps(raw))
    bucket = fsspec.filesystem("memory")
    bucket.put(str(folder), "/bucket/latents", recursive=True)
    for place in ("memory://bucket/latents", folder):
        with pytest.raises(UserError, match="expected a plain name without folders"):
            open_latents(place, cache=tmp_path / "deep" / "cache")
    bucket.rm("/bucket", recursive=True)
    assert not (tmp_path / "deep").exists()


def test_the_cache_is_the_users_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.put(str(folder), "/bucket/latents", recursive=True)
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    local, _ = open_latents("memory://bucket/latents")
    assert local.parent == tmp_path / "cache" / "latents"
    assert local.stat().st_mode & 0o777 == 0o700
    local.chmod(0o777)
    with pytest.raises(UserError, match="not a folder of your own"):
        open_latents("memory://bucket/latents")
    bucket.rm("/bucket", recursive=True)


def test_a_protocol_that_is_not_installed_says_so() -> None:
    with pytest.raises(UserError, match="cannot open nosuch://bucket"):
        open_latents("nosuch://bucket")


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_name(0))
    writer.write(record(0))
    assert not (tmp_path / shard_name(0)).exists()
    assert finished_shard(tmp_path, shard_name(0)) is None
    writer.abandon()
    assert not list(tmp_path.iterdir())
    writer = ShardWriter(tmp_path, shard_name(0))
    writer.write(record(0))
    shard = writer.finish([])
    assert finished_shard(tmp_path, shard_name(0)) == shard
    (tmp_path / shard_name(0)).write_bytes(b"half")
    assert finished_shard(tmp_path, shard_name(0)) is None
