"""What wandb writes beside a run as it is logged (`wandb/offline-run-*/*.wandb`): LevelDB's log framing around protocol buffers.

Each part has its checksum, so a changed byte is found; a run that was killed ends in a torn part, which is left out.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dit.errors import UserError

SUFFIX = ".wandb"
_HEADER, _BLOCK, _PART = b":W&B\xe1\xbe\x00", 32768, 7


def read_offline(path: Path) -> dict[str, Any]:
    """The run in the file, as `id`, `name`, `project`, `config`, `history` and `state`.

    Raises:
        UserError: if the file is of another kind or damaged.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"id": "", "name": "", "project": "", "config": {}, "history": [], "state": "crashed"}
    for data in _records(path):
        record = wandb_internal_pb2.Record()  # type: ignore[reportAttributeAccessIssue]  # made at import
        try:
            record.ParseFromString(data)
        except DecodeError as error:
            raise UserError(f"{path} holds a record that is none of wandb's: copy the run's folder again") from error
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.update(id=run.run_id, name=run.display_name, project=run.project)
                found["config"].update({item.key: json.loads(item.value_json) for item in run.config.update})
            case "config":
                found["config"].update({_name(item): json.loads(item.value_json) for item in record.config.update})
            case "history":
                found["history"].append({_name(item): json.loads(item.value_json) for item in record.history.item})
            case "exit":
                found["state"] = "failed" if record.exit.exit_code else "finished"
    return found


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _records(path: Path) -> Iterator[bytes]:
    """Each whole record of the log."""
    data = path.read_bytes()
    if not data.startswith(_HEADER):
        raise UserError(f"{path} is no log of wandb's, whose first bytes are {_HEADER!r}: copy the run's folder again")
    place, whole = len(_HEADER), b""
    while place + _PART <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _PART:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + _PART : place + _PART + length]
        place += _PART + length
        if place > len(data):
            return  # torn: its writer was killed
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            raise UserError(f"{path} is damaged before byte {place}: copy the run's folder again")
        whole += part
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""
