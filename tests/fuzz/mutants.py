"""Mutants of files, the same for a seed: bytes changed anywhere, and changes that know the format and mend its checksums."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

from dit.store.files import record_bytes

WORDS = (
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"{}", b"[]", b'"', b"0.5", b"../../x"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"(" * 5_000, b"\x1b[2J", b"\0", b"\xff\xfe", b"\n\n", b",", b"not " * 3_000),
)
NUMBERS = (0, 1, 127, 255, 32_767, 65_535, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
VALUES = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e300, 10**30, 2**63, "", "x", "1", "../x", "\x1b[2J", "/dev/zero"),
    *([], {}, [[]], [1] * 1000, {"a": {"a": 1}}, "x" * 100_000, float("nan"), float("inf"), "0" * 64),
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some places of the data changed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        span = rng.choice((1, 1, 2, 8, 64, 1024))
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.randrange(256)
            case 2:
                del out[at : at + span]
            case 3:
                out[at:at] = rng.randbytes(span)
            case 4:
                number, order = rng.choice(NUMBERS), rng.choice("<>")
                packed = struct.pack(f"{order}Q", number)
                out[at : at + 8] = packed if rng.random() < 0.5 else packed[:4] if order == "<" else packed[4:]
            case 5:
                word = rng.choice(WORDS)
                out[at : at + rng.choice((0, len(word)))] = word
            case 6:
                out[at:at] = out[rng.randrange(len(out) + 1) :][:span]
            case _:
                del out[at:]
    return bytes(out)


def of_value(value: Any, rng: random.Random) -> Any:
    """One node of a JSON value replaced, renamed, taken away or doubled; the value itself is changed."""
    holders = []
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict | list) and one:
            holders.append(one)
            stack.extend(one.values() if isinstance(one, dict) else one)
    if not holders:
        return rng.choice(VALUES)
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    match rng.randrange(5):
        case 0 if isinstance(holder, dict):
            holder[key + rng.choice(("_", "\x1b"))] = holder.pop(key)
        case 1:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder.extend(holder[:])
        case 3 if type(holder[key]) in (int, float):
            holder[key] *= rng.choice((-1, 0, 2, 0.5, 1e10))
        case _:
            holder[key] = rng.choice(VALUES)
    return value


def of_json(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A mutant of a JSON file, and whether a digest of its own vouches for it."""
    kind = rng.random()
    if kind < 0.5:
        return of_bytes(data, rng), False
    value = of_value(json.loads(data), rng)
    if kind < 0.75:
        return json.dumps(value, indent=1).encode(), False
    try:
        return record_bytes(value), True
    except ValueError:  # no JSON has NaN
        return json.dumps(value).encode(), False


def of_lines(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A mutant of JSON lines: bytes changed, or lines lost, doubled, swapped or changed as values."""
    lines = data.splitlines(keepends=True)
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines[at:at] = [lines[other]]
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = json.dumps(of_value(json.loads(lines[at]), rng)).encode() + b"\n"
        case _:
            return of_bytes(data, rng), False
    return b"".join(lines), False


def of_zip(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A mutant of a zip: its bytes changed, or those of one member with the right checksum."""
    if rng.random() < 0.4:
        return of_bytes(data, rng), False
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        chosen = rng.choice([one for one in members if one.file_size < 100_000] or members)
        for one in members:
            content = old.read(one)
            if one is chosen:
                head = rng.choice((128, len(content)))  # arrays tell their shape at the start
                content = of_bytes(content[:head], rng) + content[head:]
            new.writestr(one.filename, content, compress_type=one.compress_type)
    return out.getvalue(), True


def of_safetensors(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A mutant of safetensors: its bytes changed, or its header with the right length."""
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.4:
        return of_bytes(data, rng), False
    header = json.dumps(of_value(json.loads(data[8 : 8 + length]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :], False


def of_plain(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A mutant of anything else."""
    return of_bytes(data, rng), False
