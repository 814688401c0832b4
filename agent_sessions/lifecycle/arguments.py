"""What the arguments of the lifecycle operations may be."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from math import inf, isfinite
from types import NoneType
from typing import Any, get_args

from ..durations import duration, milliseconds
from ..errors import InvalidError
from ..stores.lifetime import Status

MAX_DESCRIPTION_CHARACTERS = 10_000
MOST_LISTED = 1000

LATEST_MS = 237_620_217_600_000
"""The year 9500: with what a lifetime adds it is still a date."""

_STATUSES = get_args(Status)
_JSON_TYPES = (str, int, float, bool, NoneType)


def check_metadata(metadata: object) -> dict[str, Any]:
    """Check metadata: a JSON object. Whether it is too large or too deep, encoding it tells."""
    if not isinstance(metadata, Mapping):
        raise InvalidError("METADATA", "metadata must be a mapping with string keys", field="metadata")
    checked = dict(metadata)
    _check_json(checked)
    return checked


def _check_json(metadata: dict[str, Any]) -> None:
    """Refuse what JSON does not have. Nothing is looked into twice, however it is nested."""
    seen: set[int] = set()
    left: list[object] = [metadata]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            if id(value) in seen:
                continue
            seen.add(id(value))
        if isinstance(value, dict):
            if not all(isinstance(name, str) for name in value):
                raise InvalidError("METADATA", "metadata must be a mapping with string keys", field="metadata")
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif type(value) not in _JSON_TYPES or (isinstance(value, float) and not isfinite(value)):
            raise InvalidError(
                "METADATA",
                f"metadata must be a JSON object, and JSON has no {type(value).__name__} like one in it",
                field="metadata",
            )


def merged_metadata(held: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with changes merged in at the top level: None removes a key."""
    removed = {name for name, value in changes.items() if value is None}
    return {name: value for name, value in {**held, **changes}.items() if name not in removed}


def check_description(description: object) -> str:
    """Check a description: text of at most 10,000 characters."""
    if not isinstance(description, str) or len(description) > MAX_DESCRIPTION_CHARACTERS:
        raise InvalidError(
            "DESCRIPTION",
            f"description must be text of at most {MAX_DESCRIPTION_CHARACTERS} characters",
            field="description",
        )
    return description


def check_ttl(ttl: object) -> int | None:
    """A TTL in milliseconds; None (given as 0): never."""
    try:
        length = duration(ttl, "ttl")
    except InvalidError as error:
        raise InvalidError("TTL", error.message, field="ttl") from None
    return max(1, milliseconds(length)) if length else None


def check_time(value: object, field: str) -> int:
    """An aware datetime as a store's time."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidError(field.upper(), f"{field} must be a datetime with a time zone", field=field)
    return round(value.timestamp() * 1000)


def check_expires_at(value: object, now: int) -> int:
    """An end in the future, before the year 9500."""
    at = check_time(value, "expires_at")
    if not now < at <= LATEST_MS:
        raise InvalidError("EXPIRES_AT", "expires_at must lie in the future, before the year 9500", field="expires_at")
    return at


def check_seconds(value: object, field: str) -> float:
    """A number of seconds from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise InvalidError(field.upper(), f"{field} must be a number of seconds from 0 on", field=field)
    return value


def check_status(status: object) -> Status | None:
    """A status, or None."""
    if status is not None and status not in _STATUSES:
        raise InvalidError("STATUS", f"status must be one of {', '.join(_STATUSES)}", field="status")
    return status  # type: ignore[return-value]


def check_limit(limit: object) -> int:
    """How many a page may have: 1 to 1000."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST_LISTED:
        raise InvalidError("LIMIT", f"limit must be a whole number from 1 to {MOST_LISTED}", field="limit")
    return limit


def check_limit_of_batch(limit: object) -> int:
    """How many one call may look at: 1 or more."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidError("LIMIT", "limit must be a whole number from 1 on", field="limit")
    return limit


def check_offset(offset: object) -> int:
    """How many to pass over."""
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise InvalidError("OFFSET", "offset must be a whole number from 0 on", field="offset")
    return offset


def added_time(hours: object, seconds: object) -> timedelta:
    """How long to extend: hours or seconds, more than 0."""
    if (hours is None) == (seconds is None):
        raise InvalidError("DURATION", "say either hours or seconds", field="hours")
    field, unit, value = ("hours", 3600, hours) if seconds is None else ("seconds", 1, seconds)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value * unit <= 36_525 * 86_400:
        raise InvalidError("DURATION", f"{field} must be more than 0, and at most a century", field=field)
    return timedelta(seconds=value * unit)
