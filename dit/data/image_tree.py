"""Which images to encode, and their labels: a folder per class, as ImageNet comes, or a label file.

A label file is CSV (`path,label`, with or without a header) or JSON (`{"path": label}`, or pairs, or pairs under "labels").
Paths are relative to the image folder. Labels are class numbers; if any is not, all are names, numbered in sorted order.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.data.images import IMAGE_SUFFIXES, find_files, is_hidden, say
from dit.errors import UserError
from dit.store.paths import is_beneath


@dataclass(frozen=True)
class ImageTree:
    """Images under `root` as (relative path, class number), sorted by path; `classes` names the numbers, `said` what was found."""

    root: Path
    images: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    said: str = ""

    @property
    def identity(self) -> str:
        """A sha256 of the paths and labels, not of the pixels."""
        text = "".join(f"{path}\0{label}\n" for path, label in self.images)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def find_images(root: str | Path, labels: str | Path | None = None) -> ImageTree:
    """The images under `root`; labelled by their first folder, or by the file `labels`, which then also says which to take."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder of images at {root}; expected one folder per class, or a folder and --labels FILE")
    if labels is not None:
        return _from_file(root, Path(labels))
    children = [child for child in sorted(root.iterdir()) if not is_hidden(child.name)]
    found = {child.name: find_files(child) for child in children if child.is_dir()}
    classes = tuple(name for name in found if found[name].paths)
    files = [child.suffix.lower() in IMAGE_SUFFIXES for child in children if child.is_file()]
    loose = sum(files)
    if not classes:
        hint = f"; {loose} images lie in it directly: label them with --labels FILE" if loose else ""
        raise UserError(f"no images in class folders under {root}; expected {root}/CLASS/IMAGE.jpg{hint}")
    images: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        images += sorted((path.relative_to(root).as_posix(), label) for path in found[name].paths)
    hidden = sum(each.hidden for each in found.values()) + len(list(root.iterdir())) - len(children)
    others = sum(each.others for each in found.values()) + len(files) - loose
    return ImageTree(root, tuple(images), classes, f"{say(len(images), hidden, others, loose)}; {len(classes)} classes")


def _from_file(root: Path, source: Path) -> ImageTree:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the label file {source}: {error}") from error
    pairs = _json_pairs(source, text) if source.suffix.lower() == ".json" else _csv_pairs(source, text)
    if not pairs:
        raise UserError(f"the label file {source} names no images; expected lines of path,label")
    outside = next((path for path, _ in pairs if not is_beneath(path)), None)
    if outside is not None:
        raise UserError(f"the label file {source} names {outside[:80]!r}: expected paths of images under {root}")
    if len({path for path, _ in pairs}) != len(pairs):
        seen: set[str] = set()
        twice = next(path for path, _ in pairs if path in seen or seen.add(path))
        raise UserError(f"the label file {source} labels {twice} twice; expected each image once")
    missing = [path for path, _ in pairs if not (root / path).is_file()]
    if len(missing) == len(pairs):
        raise UserError(f"none of the {len(pairs)} images of {source} is under {root}, for example {missing[0]}")
    names = [label for _, label in pairs]
    if all(name.isdecimal() for name in names):
        numbers = {name: int(name) for name in names}
        classes = tuple(map(str, range(max(numbers.values()) + 1)))
    else:
        classes = tuple(sorted(set(names)))
        numbers = {name: number for number, name in enumerate(classes)}
    return ImageTree(root, tuple(sorted((path, numbers[name]) for path, name in pairs)), classes)


def _csv_pairs(source: Path, text: str) -> list[tuple[str, str]]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(map(str.strip, row))]
    bad = next((row for row in rows if len(row) != 2 or not all(row)), None)
    if bad is not None:
        raise UserError(f"the label file {source} has the line {','.join(bad)!r}; expected path,label")
    if rows and Path(rows[0][0]).suffix.lower() not in IMAGE_SUFFIXES:
        rows = rows[1:]
    return [(path, label) for path, label in rows]


def _json_pairs(source: Path, text: str) -> list[tuple[str, str]]:
    try:
        raw: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"the label file {source} is not JSON: {error}") from error
    if isinstance(raw, dict) and "labels" in raw:
        raw = raw["labels"]
    pairs = list(raw.items()) if isinstance(raw, dict) else raw
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise UserError(
            f"the label file {source} has no list of labels; expected {{path: label}} or [[path, label], ...]"
        )
    return [(path, str(label)) for path, label in pairs]


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    path, label = pair
    return isinstance(path, str) and isinstance(label, int | str) and not isinstance(label, bool)
