"""Prices of an hour of one chip, from a dated file that the user edits."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dit.errors import UserError
from sweeps.hardware import Band

FIELDS = {"usd", "low", "high", "as_of", "source"}


@dataclass(frozen=True)
class Price:
    """US dollars for an hour of one chip, and when and where that held."""

    usd: Band
    as_of: datetime.date
    source: str


def load_prices(path: Path | None = None) -> dict[str, Price]:
    """Prices by kind of chip, from the file that comes with the package unless another is given.

    Raises:
        UserError: if the file is missing, is not TOML, or an entry is not a price with its date.
    """
    try:
        text = (resources.files("sweeps") / "prices.toml" if path is None else path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no prices at {path} ({error}): expected a TOML file such as sweeps/prices.toml") from error
    name = path or "sweeps/prices.toml"
    try:
        entries = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{name} is not TOML ({error}): correct it, or start again from sweeps/prices.toml") from error
    return {kind: _price(f"{name} [{kind}]", entry) for kind, entry in entries.items()}


def _price(where: str, entry: Any) -> Price:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}: expected a table with usd and as_of")
    if unknown := sorted(set(entry) - FIELDS):
        raise UserError(f"{where} has {unknown[0]}: expected usd, low, high, as_of and source")
    usd = _amount(where, entry, "usd", None)
    band = Band(_amount(where, entry, "low", usd), usd, _amount(where, entry, "high", usd))
    if not band.low <= band.expected <= band.high:
        raise UserError(f"{where}: expected low <= usd <= high, got {band.low}, {band.expected} and {band.high}")
    if type(entry.get("as_of")) is not datetime.date:
        raise UserError(f"{where} has as_of {entry.get('as_of')!r}: expected the price's date, such as 2026-05-01")
    return Price(band, entry["as_of"], str(entry.get("source", "")))


def _amount(where: str, entry: dict[str, Any], field: str, default: float | None) -> float:
    value = entry.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise UserError(f"{where} has {field} {value!r}: expected US dollars per chip and hour, above 0")
    return float(value)
