"""Keeping a live session's items alive without rewriting them.

DynamoDB deletes an item some time after its attribute `x`. Each item of a session is written with an `x` that is 30
days later than the session's own end, so that the session can go on for long before any of them is in danger. The
record knows the earliest of them (`h`). Where a commit would move the session's end to within a day of it, all items
that were last stamped 23 days ago or longer are stamped anew; that happens every six days at the most, and to no item
more often than every 23.

What is past the session's end is never served, whether DynamoDB has deleted it by then or not.
"""

from __future__ import annotations

from functools import partial

from agent_sessions.stores.dynamodb.layout.records import Record
from agent_sessions.stores.dynamodb.service.requests import Refused, Requests, gather

DAY = 86_400
SLACK = 30 * DAY
"""Seconds that an item stays after the end that its session had when it was stamped."""

_DUE = SLACK - 23 * DAY
_URGENT = DAY


def expiry_of(gone_at: int | None, now: int) -> int | None:
    """The `x` of an item that is written now, in seconds."""
    return None if gone_at is None else seconds(max(gone_at, now)) + SLACK


def seconds(milliseconds: int) -> int:
    """As whole seconds, not before the time itself."""
    return -(-milliseconds // 1000)


def sooner(one: int | None, other: int | None) -> int | None:
    """The earlier of two times; None is never."""
    return min((time for time in (one, other) if time is not None), default=None)


async def keep_alive(requests: Requests, partition: str, record: Record, gone_at: int | None, now: int) -> int | None:
    """See that the items of a life outlast a new end of its session; return until when they all stay."""
    if not _is_in_danger(record, gone_at):
        return record.stays_until
    expires = expiry_of(gone_at, now)
    items = await requests.query_all(partition, record.life.everything, only="k, x")
    stamps = {item["k"]["B"]: int(item["x"]["N"]) if "x" in item else None for item in items}
    due = [sort_key for sort_key, stamp in stamps.items() if _is_due(stamp, gone_at)]
    await gather([partial(_stamp, requests, partition, sort_key, expires) for sort_key in due])
    earliest = expires
    for sort_key, stamp in stamps.items():
        if sort_key not in due:
            earliest = sooner(earliest, stamp)
    return earliest


def _is_in_danger(record: Record, gone_at: int | None) -> bool:
    if gone_at is None:
        return record.stays_until is not None
    return record.stays_until is None or record.stays_until < seconds(gone_at) + _URGENT


def _is_due(stamp: int | None, gone_at: int | None) -> bool:
    if gone_at is None:
        return stamp is not None
    return stamp is None or stamp < seconds(gone_at) + _DUE


async def _stamp(requests: Requests, partition: str, sort_key: bytes, expires: int | None) -> None:
    expression, values = ("REMOVE x", {}) if expires is None else ("SET x = :x", {":x": {"N": str(expires)}})
    try:
        await requests.update(partition, expression, values, "attribute_exists(k)", sort_key=sort_key)
    except Refused:
        return  # swept meanwhile: it was dead
