"""Lengths of time, as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from .errors import InvalidError

LONGEST = timedelta(days=36_525)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


def duration(value: object, field: str) -> timedelta:
    """A length of time: a number of seconds, a `timedelta`, or text such as `30m`, `24h`, `7d`, `1h30m`, `500ms`.

    Raises:
        InvalidError: `INVALID_DURATION`: it is none of these, negative, or longer than a century.
    """
    found = value if isinstance(value, timedelta) else _from_seconds(_seconds(value))
    if found is None or not timedelta(0) <= found <= LONGEST:
        raise InvalidError(
            "DURATION",
            f"{field} must be from 0 to a century: seconds, a timedelta, or text such as 30m, 24h, 7d, 1h30m",
            field=field,
        )
    return found


def milliseconds(value: timedelta) -> int:
    """A length of time in whole milliseconds."""
    return round(value / timedelta(milliseconds=1))


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return min(value, math.inf)  # an int may be too large for a float
    if not isinstance(value, str):
        return math.nan
    text = value.strip().lower()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else math.nan


def _from_seconds(seconds: float) -> timedelta | None:
    return timedelta(seconds=seconds) if 0 <= seconds <= LONGEST.total_seconds() else None
