"""A study as one file: packed the same each time, read by every verb, and never unpacked outside its place."""

import io
import tarfile

import pytest
from synthetic_study import cells, write_study

from analysis.results import results
from dit.cli import main
from dit.errors import UserError
from dit.store.archives import pack, unpacked


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "made"
    runs = cells(sizes=("S", "B"), patches=(4, 2), seeds=(0,))
    write_study(folder, runs)
    return folder


def test_an_archive_has_the_rows_of_its_folder_and_packs_to_the_same_bytes(study, tmp_path):
    archive = pack(study, tmp_path / "made.tar.xz")
    assert results(archive).equals(results(study))
    again = pack(unpacked(archive), tmp_path / "again.tar.xz")
    assert again.read_bytes() == archive.read_bytes()


def test_verbs_take_an_archive_and_write_beside_it(study, tmp_path, capsys):
    archive = pack(study, tmp_path / "made.tar.xz")
    for verb in ("results", "status", "fit", "compare"):
        arguments = [verb, str(archive)] + ([str(study)] if verb == "compare" else [])
        assert main(arguments) in (0, None, 2) and "no folder" not in capsys.readouterr().err
    assert main(["figures", str(archive), "--only", "fig8"]) == 0
    assert (tmp_path / "made" / "figures" / "fig8.png").is_file()


def test_the_command_says_what_it_wrote_or_why_not(study, tmp_path, capsys):
    assert main(["export", "archive", str(study), "--out", str(tmp_path / "a.tar.xz")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.tar.xz'}: ")
    assert main(["export", "archive", str(study), "--out", str(tmp_path / "a.zip")]) == 2
    assert main(["export", "archive", str(tmp_path), "--out", str(tmp_path / "b.tar.xz")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "line\nbreak"])
def test_a_name_that_leads_outside_is_refused(tmp_path, name):
    place = tmp_path / "bad.tar.xz"
    with tarfile.open(place, "w:xz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="expected plain files inside"):
        unpacked(place)
    assert not (tmp_path / "outside").exists()


def test_what_a_link_in_a_study_leads_to_is_not_packed(study, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine alone")
    before = pack(study, tmp_path / "one.tar.xz").read_bytes()
    (study / "runs" / "notes.json").symlink_to(secret)
    (study / "more").symlink_to(tmp_path)
    assert pack(study, tmp_path / "two.tar.xz").read_bytes() == before


def test_links_and_devices_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        place = tmp_path / f"{kind[0]}.tar.xz"
        with tarfile.open(place, "w:xz") as archive:
            member = tarfile.TarInfo("study.json")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(UserError, match="expected plain files"):
            unpacked(place)


def test_a_damaged_archive_is_one_line(tmp_path, capsys):
    place = tmp_path / "torn.tar.xz"
    place.write_bytes(b"no archive")
    assert main(["results", str(place)]) == 2
    assert "no sound archive" in capsys.readouterr().err
