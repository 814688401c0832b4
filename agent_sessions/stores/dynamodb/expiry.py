"""Keeping a live session's items alive without rewriting them.

DynamoDB deletes an item some time after its attribute `x`. Each item of a session is written with an `x` that is 30
days later than the session's own end, so that the session can go on for long before any of them is in danger. The
record knows the earliest of them (`h`). Where a write would move the session's end to within a day of it, all items
that were last stamped 23 days ago or longer are stamped anew; that happens every six days at the most, and to no item
more often than every 23.

Stamps are written before the commit or amendment that needs them, which may then be refused or never come, and they
may arrive late. So a stamp only ever makes an item stay longer; but for one that an item without any gets. That one is
written while the session has an end, which each transaction checks, and so not beside a write that takes the end away.
A session without an end forgets `h` only with the second such write, which sees all stamps that came before the first.

What is past the session's end is never served, whether DynamoDB has deleted it by then or not.
"""

from __future__ import annotations

from functools import partial

from agent_sessions.stores.dynamodb.layout.records import Change, Record, number, optional
from agent_sessions.stores.dynamodb.service.requests import Item, Refused, Requests, gather, item_key

DAY = 86_400
SLACK = 30 * DAY
"""Seconds that an item stays after the end that its session had when it was stamped."""

_DUE = SLACK - 23 * DAY
_URGENT = DAY
_STAMPED_AT_ONCE = 9
"""Items of 400 KB in a transaction, which takes 4 MB of them."""


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
    stamps = await _stamps(requests, partition, record)
    due = [sort_key for sort_key, stamp in stamps.items() if stamp is not None and _is_due(stamp, gone_at)]
    await gather([partial(_stamp, requests, partition, sort_key, expires) for sort_key in due])
    if gone_at is None:
        return None if record.gone_at is None else record.stays_until
    if record.gone_at is not None:
        await _stamp_first(requests, partition, record, stamps, expires)
    earliest = expires
    for sort_key, stamp in stamps.items():
        if sort_key not in due:
            earliest = sooner(earliest, stamp)
    return earliest


async def let_go(requests: Requests, partition: str, record: Record, now: int) -> None:
    """Give the items of a session that was to stay for ever, and now has an end, their stamps."""
    stamps = await _stamps(requests, partition, record)
    await _stamp_first(requests, partition, record, stamps, expiry_of(record.gone_at, now))


async def _stamps(requests: Requests, partition: str, record: Record) -> dict[bytes, int | None]:
    items = await requests.query_all(partition, record.names.everything, only="k, x")
    return {item["k"]["B"]: int(item["x"]["N"]) if "x" in item else None for item in items}


def _is_in_danger(record: Record, gone_at: int | None) -> bool:
    if gone_at is None:
        return record.stays_until is not None
    return record.stays_until is not None and record.stays_until < seconds(gone_at) + _URGENT


def _is_due(stamp: int, gone_at: int | None) -> bool:
    return gone_at is None or stamp < seconds(gone_at) + _DUE


async def _stamp(requests: Requests, partition: str, sort_key: bytes, expires: int | None) -> None:
    try:
        if expires is None:
            await requests.update(partition, "REMOVE x", {}, "attribute_exists(k)", sort_key=sort_key)
        else:
            await requests.update(partition, "SET x = :x", {":x": number(expires)}, "x < :x", sort_key=sort_key)
    except Refused:
        return  # swept meanwhile: it was dead; or it stays longer anyway


async def _stamp_first(
    requests: Requests, partition: str, record: Record, stamps: dict[bytes, int | None], expires: int | None
) -> None:
    """Stamp what has no stamp, as long as the record is this one, which has an end."""
    assert record.gone_at is not None
    bare = [sort_key for sort_key, stamp in stamps.items() if stamp is None]
    found = Change()
    unchanged: Item = {
        "Key": item_key(partition),
        "ConditionExpression": found.as_found(record),
        "ExpressionAttributeValues": found.values,
    }
    try:
        for at in range(0, len(bare), _STAMPED_AT_ONCE):
            writes: list[Item] = [
                {
                    "Update": {
                        "Key": item_key(partition, sort_key),
                        "UpdateExpression": "SET x = :x",
                        "ConditionExpression": "attribute_exists(k) AND attribute_not_exists(x)",
                        "ExpressionAttributeValues": {":x": optional(expires)},
                    }
                }
                for sort_key in bare[at : at + _STAMPED_AT_ONCE]
            ]
            await requests.transact([{"ConditionCheck": unchanged.copy()}, *writes])
    except Refused:
        return  # there has been another write, or a sweep: the next time that items are stamped, the rest is
