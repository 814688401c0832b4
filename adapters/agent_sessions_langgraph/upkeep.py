"""What is done to LangGraph's state in a session as a whole: deleting, pruning, copying."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from msgspec import Struct

from agent_sessions import Session, codec
from agent_sessions.runs.execution import PAUSED

from .chunks import Pair
from .keys import (
    CHECKPOINTS,
    COLLECTION,
    HEADS,
    NAMESPACE,
    RUNS,
    base_in,
    blob_key,
    checkpoint_key,
    chunk_key,
    head_name,
    run_key,
    run_prefix,
    writes_prefix,
)
from .messages import MESSAGES
from .thread import Head, Stored, as_stored, forget, segments_in

Loads = Callable[[Pair], Any]

_DELTA_COUNTERS = "counters_since_delta_snapshot"
"""In the metadata of a checkpoint: LangGraph's delta channels, of which not each one has a stored value."""

_BATCH_BYTES = 8 * 2**20


async def clear(session: Session) -> None:
    """Delete the state of LangGraph in a session: all threads, and what is paused in them."""
    namespace = session.namespace(NAMESPACE)
    for name in _names(session):
        if name != PAUSED:
            session.count_messages(-(Head(*namespace.get(name)).messages or 0))
        namespace.delete(name)
    await namespace.collection(COLLECTION).delete_prefix("")
    forget(session)


# --------------------------------------------------------------------------------------------------- deleting


class _Space(Struct):
    """The checkpoints of one namespace of a thread, by their ids."""

    base: str
    entries: dict[str, Stored]

    def latest(self, session: Session) -> str:
        """The id of the latest one."""
        head = session.namespace(NAMESPACE).get(head_name(self.base))
        return max(self.entries) if head is None or head[0] not in self.entries else str(head[0])


async def prune(session: Session, loads: Loads) -> None:
    """Delete all checkpoints but the latest one of each namespace, and what its delta channels are rebuilt from."""
    spaces = await _spaces(session)
    await _keep(session, [(space, _needed(space, space.latest(session), loads)) for space in spaces])


async def has_runs(session: Session, run_ids: AbstractSet[str]) -> bool:
    """Whether there are checkpoints of these runs in the session."""
    marks = await session.namespace(NAMESPACE).collection(COLLECTION).range(prefix=RUNS)
    wanted = {run_prefix(run_id) for run_id in run_ids}
    return any(key.rpartition("/")[0] + "/" in wanted for key, _ in marks)


async def delete_runs(session: Session, run_ids: AbstractSet[str]) -> None:
    """Delete the checkpoints of these runs."""
    spaces = await _spaces(session)
    kept = [{entry.id for entry in space.entries.values() if entry.run_id not in run_ids} for space in spaces]
    await _keep(session, list(zip(spaces, kept, strict=True)))


async def _spaces(session: Session) -> list[_Space]:
    spaces: dict[str, _Space] = {}
    for key, value in await session.namespace(NAMESPACE).collection(COLLECTION).range(prefix=CHECKPOINTS):
        entry, base = as_stored(value), base_in(key)
        spaces.setdefault(base, _Space(base, {})).entries[entry.id] = entry
    return list(spaces.values())


def _needed(space: _Space, checkpoint_id: str, loads: Loads) -> set[str]:
    """A checkpoint, and those above it up to where each of its delta channels has a stored value."""
    entry = space.entries[checkpoint_id]
    needed = {entry.id}
    written = loads(entry.checkpoint)["channel_versions"]
    missing = {name for name in loads(entry.metadata).get(_DELTA_COUNTERS) or () if name in written}
    missing -= entry.versions.keys()
    while missing and entry.parent in space.entries:
        entry = space.entries[entry.parent]
        needed.add(entry.id)
        missing -= entry.versions.keys()
    return needed


async def _keep(session: Session, spaces: list[tuple[_Space, set[str]]]) -> None:
    """Delete all checkpoints but these, and what only they have needed."""
    namespace = session.namespace(NAMESPACE)
    entries = namespace.collection(COLLECTION)
    keys: set[str] = set()
    prefixes: list[str] = []
    marks: set[str] = set()
    kept_marks: set[str] = set()
    for space, ids in spaces:
        kept = [entry for entry in space.entries.values() if entry.id in ids]
        gone = [entry for entry in space.entries.values() if entry.id not in ids]
        kept_marks |= _marks(space.base, kept)
        if not gone:
            continue
        marks |= _marks(space.base, gone)
        kept_blobs, gone_blobs = _blobs(space.base, kept), _blobs(space.base, gone)
        found = await entries.get_many(kept_blobs | gone_blobs)
        kept_chunks = _chunks(space.base, (found[key] for key in kept_blobs if key in found))
        gone_chunks = _chunks(space.base, (found[key] for key in gone_blobs if key in found))
        keys |= {checkpoint_key(space.base, entry.id) for entry in gone}
        keys |= (gone_blobs - kept_blobs) | (gone_chunks - kept_chunks)
        prefixes += [writes_prefix(space.base, entry.id) for entry in gone]
        _move_head(session, space, kept, found)
    await entries.delete(*keys, *(marks - kept_marks))
    for prefix in prefixes:
        await entries.delete_prefix(prefix)
    forget(session)


def _move_head(session: Session, space: _Space, kept: list[Stored], found: Mapping[str, Any]) -> None:
    """If the latest checkpoint goes, the one before it is the latest."""
    namespace, name = session.namespace(NAMESPACE), head_name(space.base)
    held = namespace.get(name)
    if held is None or any(entry.id == held[0] for entry in kept):
        return
    before = Head(*held).messages
    if kept:
        latest = max(kept, key=lambda entry: entry.id)
        messages = None if before is None else _messages_of(space.base, latest, found)
        namespace.set(name, list(Head(latest.id, latest.versions, has_writes=True, messages=messages)))
    else:
        messages = None
        namespace.delete(name)
    session.count_messages((messages or 0) - (before or 0))


def _messages_of(base: str, entry: Stored, found: Mapping[str, Any]) -> int:
    version = entry.versions.get(MESSAGES)
    value = None if version is None else found.get(blob_key(base, MESSAGES, version))
    return sum(one.stop - one.start for one in segments_in(value)) if value and value[0] is None else 0


def _marks(base: str, entries: list[Stored]) -> set[str]:
    return {run_key(entry.run_id, base) for entry in entries if entry.run_id is not None}


def _blobs(base: str, entries: list[Stored]) -> set[str]:
    return {blob_key(base, channel, version) for entry in entries for channel, version in entry.versions.items()}


def _chunks(base: str, blobs: Iterable[Any]) -> set[str]:
    return {chunk_key(base, one.chunk) for value in blobs if value[0] is None for one in segments_in(value)}


# --------------------------------------------------------------------------------------------------- copying


class Copy(Struct):
    """LangGraph's state of one moment."""

    values: dict[str, Any]
    batches: list[dict[str, Any]]
    """Entries in the order in which they are to be stored: checkpoints after what belongs to them."""


async def copied(session: Session) -> Copy:
    """Read all of it."""
    namespace = session.namespace(NAMESPACE)
    entries = await namespace.collection(COLLECTION).range()
    batches: list[dict[str, Any]] = [{}]
    size = 0
    for key, value in sorted(entries, key=lambda entry: (entry[0].startswith(CHECKPOINTS), entry[0])):
        size += len(codec.encode(value))
        if size > _BATCH_BYTES and batches[-1]:
            batches.append({})
            size = 0
        batches[-1][key] = value
    return Copy({name: namespace.get(name) for name in _names(session)}, batches)


async def paste_entries(session: Session, entries: dict[str, Any]) -> None:
    """Store some of the entries of a copy."""
    await session.namespace(NAMESPACE).collection(COLLECTION).put_many(entries)


def paste_values(session: Session, copy: Copy) -> None:
    """Store the values of a copy, at last: they say which checkpoints are the latest. Of two, the later one is."""
    namespace = session.namespace(NAMESPACE)
    for name, value in copy.values.items():
        held = namespace.get(name)
        if name == PAUSED:
            namespace.set(name, {**(held or {}), **value})
        elif held is None or held[0] <= value[0]:
            before = None if held is None else Head(*held).messages
            session.count_messages((Head(*value).messages or 0) - (before or 0))
            namespace.set(name, value)


def _names(session: Session) -> list[str]:
    names = session.namespace(NAMESPACE).keys()
    return [name for name in names if name == PAUSED or name.startswith(HEADS)]
