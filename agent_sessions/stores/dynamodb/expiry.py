"""Keeping a live session's items alive without rewriting them.

DynamoDB deletes an item some time after its attribute `x`. Each item of a session is written with an `x` that is 30
days later than the session's own end, so that the session can go on for long before any of them is in danger. The
record knows the earliest of them (`h`). Where a write would move the session's end to within a day of it, all items
that were last stamped 23 days ago or longer are stamped anew; that happens every six days at the most, and to no item
more often than every 23.

Stamps are written before the commit or amendment that needs them, which may then be refused or never come, and they
may arrive late. So one that changes a stamp only ever makes the item stay longer.

Items of a session without an end have no stamp. Where a write gives the session an end, they get theirs after it; where
one takes the end away, they lose theirs before it. Lest one be left without for good if that breaks off, the record
says so (`z`) until each has its stamp, and has no TTL itself for so long. Who next writes, takes the lease or scans,
goes on: it enters a number of its own there, on which all its steps depend, and with which nobody else's come through.

What is past the session's end is never served, whether DynamoDB has deleted it by then or not.
"""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

from msgspec import structs

from agent_sessions.stores.dynamodb.layout.records import Change, Record, binary, number
from agent_sessions.stores.dynamodb.service.requests import Item, Refused, Requests, gather, item_key

DAY = 86_400
SLACK = 30 * DAY
"""Seconds that an item stays after the end that its session had when it was stamped."""

_DUE = SLACK - 23 * DAY
_URGENT = DAY
_CHANGED_AT_ONCE = 9
"""Items of 400 KB in a transaction, which takes 4 MB of them."""


def expiry_of(gone_at: int | None, now: int) -> int | None:
    """The `x` of an item that is written now, in seconds."""
    return None if gone_at is None else _stamp_for(gone_at, now)


def seconds(milliseconds: int) -> int:
    """As whole seconds, not before the time itself."""
    return -(-milliseconds // 1000)


def sooner(one: int | None, other: int | None) -> int | None:
    """The earlier of two times; None is never."""
    return min((time for time in (one, other) if time is not None), default=None)


class Kept(NamedTuple):
    """A record as it is by now, and until when all items that its life has stay; None: for ever."""

    record: Record
    stays_until: int | None


def unstamped(old: Record, gone_at: int | None, write_id: bytes) -> bytes | None:
    """What the record says after a write that gives a session this end."""
    if old.life is None or gone_at is None:
        return None
    return write_id if old.gone_at is None or old.unstamped is not None else None


async def keep_alive(requests: Requests, partition: str, record: Record, gone_at: int | None, now: int) -> Kept:
    """See that the items of a life outlast a new end of its session.

    Raises:
        Refused: The record is not as it was found.
    """
    if gone_at is None:
        return Kept(record if record.gone_at is None else await _let_stay(requests, partition, record), None)
    if record.stays_until is None or record.stays_until >= seconds(gone_at) + _URGENT:
        return Kept(record, record.stays_until)
    expires = _stamp_for(gone_at, now)
    stamps = await _stamps(requests, partition, record)
    due = [sort_key for sort_key, stamp in stamps.items() if stamp is not None and stamp < seconds(gone_at) + _DUE]
    await gather([partial(_stamp, requests, partition, sort_key, expires) for sort_key in due])
    rest = [stamp for sort_key, stamp in stamps.items() if stamp is not None and sort_key not in due]
    return Kept(record, min([expires, *rest]))


async def let_go(requests: Requests, partition: str, record: Record, now: int) -> Record:
    """Give the items their stamps that have none though the session has an end; return the record as it is then."""
    if record.unstamped is None:
        return record
    assert record.gone_at is not None
    expires = _stamp_for(record.gone_at, now)
    try:
        record = await _mark(requests, partition, record)
        stamps = await _stamps(requests, partition, record)
        bare = [sort_key for sort_key, stamp in stamps.items() if stamp is None]
        await _change(
            requests, partition, record, bare, "SET x = :x", "attribute_not_exists(x)", {":x": number(expires)}
        )
        done = structs.replace(record, unstamped=None)
        change = Change().remove("z").set("x", number(max(done.goes_at, expires)))  # there may be a lease of now on it
        condition = change.as_found(record)
        await requests.update(partition, change.expression, change.values, condition)
    except Refused:
        return record  # there has been another write, or a sweep: who comes next does it
    return done


async def _let_stay(requests: Requests, partition: str, record: Record) -> Record:
    """Take the stamps off the items of a session that is to have no end; return the record as it is then."""
    record = await _mark(requests, partition, record)
    stamps = await _stamps(requests, partition, record)
    stamped = [sort_key for sort_key, stamp in stamps.items() if stamp is not None]
    try:
        await _change(requests, partition, record, stamped, "REMOVE x", "attribute_exists(x)", {})
    except Refused:
        raise Refused(await requests.get(partition), maybe_done=False) from None  # it may have been an item's
    return record


async def _mark(requests: Requests, partition: str, record: Record) -> Record:
    """Note that items may have no stamp. From here on nobody else takes one off, or gives one to an item without."""
    marked = structs.replace(record, unstamped=os.urandom(8))
    assert marked.unstamped is not None
    change = Change().set("z", binary(marked.unstamped)).set("x", number(marked.goes_at))
    condition = change.as_found(record)
    await requests.update(partition, change.expression, change.values, condition)
    return marked


def _stamp_for(gone_at: int, now: int) -> int:
    return seconds(max(gone_at, now)) + SLACK


async def _stamps(requests: Requests, partition: str, record: Record) -> dict[bytes, int | None]:
    items = await requests.query_all(partition, record.names.everything, only="k, x")
    return {item["k"]["B"]: int(item["x"]["N"]) if "x" in item else None for item in items}


async def _stamp(requests: Requests, partition: str, sort_key: bytes, expires: int) -> None:
    try:
        await requests.update(partition, "SET x = :x", {":x": number(expires)}, "x < :x", sort_key=sort_key)
    except Refused:
        return  # swept meanwhile: it was dead; or it stays longer anyway


async def _change(
    requests: Requests,
    partition: str,
    record: Record,
    sort_keys: list[bytes],
    expression: str,
    condition: str,
    values: Item,
) -> None:
    """Change the stamps of items as long as the record is this one."""
    found = Change()
    unchanged: Item = {
        "Key": item_key(partition),
        "ConditionExpression": found.as_found(record),
        "ExpressionAttributeValues": found.values,
    }
    update: Item = {"UpdateExpression": expression, "ConditionExpression": f"attribute_exists(k) AND {condition}"}
    if values:
        update["ExpressionAttributeValues"] = values
    for at in range(0, len(sort_keys), _CHANGED_AT_ONCE):
        some = sort_keys[at : at + _CHANGED_AT_ONCE]
        writes = [{"Update": {"Key": item_key(partition, sort_key), **update}} for sort_key in some]
        await requests.transact([{"ConditionCheck": unchanged.copy()}, *writes])
