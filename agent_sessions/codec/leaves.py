"""Types without parts of their own: how each becomes the payload of its extension, and back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from pydantic_core import TzInfo


class Code:
    """The extension codes. See the table in `agent_sessions.codec`."""

    INT: Final = 1
    DATETIME: Final = 2
    DATE: Final = 3
    TIME: Final = 4
    TIMEDELTA: Final = 5
    DECIMAL: Final = 6
    UUID: Final = 7
    TUPLE: Final = 8
    SET: Final = 9
    FROZENSET: Final = 10
    DICT: Final = 11
    OBJECT: Final = 12


LAST_RESERVED_CODE: Final = 63
"""Codes up to here are this library's, now or later."""

Zone = None | str | int | list[str | int]

_encode: Final = msgspec.msgpack.Encoder().encode
_moment: Final = msgspec.msgpack.Decoder(tuple[str, int, Zone])
_delta: Final = msgspec.msgpack.Decoder(tuple[int, int, int])
_MICROSECOND: Final = timedelta(microseconds=1)


def write_int(value: int) -> bytes:
    """The payload of an integer beyond 64 bit."""
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _write_moment(value: datetime | time) -> bytes:
    return _encode((value.replace(tzinfo=None).isoformat(), value.fold, _write_zone(value.tzinfo)))


def _write_date(value: date) -> bytes:
    return value.isoformat().encode()


def _write_timedelta(value: timedelta) -> bytes:
    return _encode((value.days, value.seconds, value.microseconds))


def _write_decimal(value: Decimal) -> bytes:
    return str(value).encode()


def _write_uuid(value: UUID) -> bytes:
    return value.bytes


def _write_zone(zone: tzinfo | None) -> Zone:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        microseconds = offset // _MICROSECOND
        return microseconds if timezone(offset).tzname(None) == name else ["timezone", microseconds, name]
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is TzInfo:  # what pydantic gives to a datetime that it has parsed
        seconds = zone.utcoffset(None)
        assert seconds is not None
        return ["pydantic", seconds // timedelta(seconds=1)]
    kind = type(zone)
    raise ValueError(
        f"has a time zone of type {kind.__module__}.{kind.__qualname__}, which can't be stored exactly. "
        "Use datetime.timezone, or zoneinfo.ZoneInfo with a key"
    )


def _read_zone(zone: Zone) -> tzinfo | None:
    match zone:
        case None:
            return None
        case str():
            return ZoneInfo(zone)
        case int():
            return timezone(timedelta(microseconds=zone))
        case ["timezone", int() as offset, str() as name]:
            return timezone(timedelta(microseconds=offset), name)
        case ["pydantic", int() as offset]:
            return TzInfo(offset)
        case _:
            raise ValueError("unknown kind of zone")


def _read_int(data: memoryview) -> int:
    return int.from_bytes(data, "big", signed=True)


def _read_datetime(data: memoryview) -> datetime:
    text, fold, zone = _moment.decode(data)
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(zone))


def _read_time(data: memoryview) -> time:
    text, fold, zone = _moment.decode(data)
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(zone))


def _read_date(data: memoryview) -> date:
    return date.fromisoformat(str(data, "utf-8"))


def _read_timedelta(data: memoryview) -> timedelta:
    days, seconds, microseconds = _delta.decode(data)
    return timedelta(days, seconds, microseconds)


def _read_decimal(data: memoryview) -> Decimal:
    return Decimal(str(data, "utf-8"))


def _read_uuid(data: memoryview) -> UUID:
    return UUID(bytes=bytes(data))


WRITERS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    datetime: (Code.DATETIME, _write_moment),
    date: (Code.DATE, _write_date),
    time: (Code.TIME, _write_moment),
    timedelta: (Code.TIMEDELTA, _write_timedelta),
    Decimal: (Code.DECIMAL, _write_decimal),
    UUID: (Code.UUID, _write_uuid),
}

READERS: Final[dict[int, Callable[[memoryview], object]]] = {
    Code.INT: _read_int,
    Code.DATETIME: _read_datetime,
    Code.DATE: _read_date,
    Code.TIME: _read_time,
    Code.TIMEDELTA: _read_timedelta,
    Code.DECIMAL: _read_decimal,
    Code.UUID: _read_uuid,
}
