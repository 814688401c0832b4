"""A LangGraph thread as it is kept in a session: checkpoints, values of channels, pending writes, and heads.

Checkpoints, channel values and writes are entries of one collection, so that reading the latest checkpoint takes one
`get_many`, and no round trip in the process that wrote it. A small value, the *head*, names the latest checkpoint and
the keys of what belongs to it; it is there as soon as the session is open. The namespace of a subgraph that runs as a
task carries the task's id, is another one at every run, and has no head: its latest checkpoint is looked up.

Everything here is bytes from a serializer; nothing is decoded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import count
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from langgraph.checkpoint.base import writes_sort_key
from msgspec import Struct, field, structs

from agent_sessions import Session
from agent_sessions.errors import SessionConflictError
from agent_sessions.runs.execution import PAUSED

from .keys import (
    COLLECTION,
    HEADS,
    NAMESPACE,
    blob_key,
    checkpoint_key,
    checkpoint_prefix,
    head_name,
    writes_key,
    writes_prefix,
)

Version = str | int | float
Pair = tuple[str, bytes]
"""What a serializer makes of a value: the name of its format, and bytes."""


Origin = Literal["next", "fork", "copy"]
"""What a checkpoint is: `next`, it follows the latest one, and becomes it. `fork`, it goes on from an older one, and
becomes the latest. `copy`, it is stored by hand, in any order: the latest is the one with the highest id."""


class Write(NamedTuple):
    """A pending write of a task."""

    task_path: str
    task_id: str
    place: int
    """Its place among the task's writes: the first one of a place stays. Special channels have a negative place of
    their own, of which the last one stays."""
    channel: str
    value: Pair


class NewCheckpoint(Struct, frozen=True):
    """A checkpoint to be stored."""

    ns: str
    id: str
    parent: str | None
    checkpoint: Pair
    """Without the values of channels."""
    metadata: Pair
    versions: Mapping[str, Version]
    """The versions of all channels."""
    changed: AbstractSet[str]
    """The channels whose version is new."""
    filled: AbstractSet[str]
    """The channels that have a value."""
    blobs: Mapping[str, Pair]
    """The values of those that are both."""


class Stored(Struct, frozen=True):
    """A checkpoint as it is stored."""

    ns: str
    id: str
    parent: str | None
    checkpoint: Pair
    metadata: Pair
    versions: dict[str, Version]
    """The channels that have a stored value, and at which version."""
    blobs: dict[str, Pair] = {}
    """Their values."""
    writes: list[Write] = []
    """In the order in which they are applied."""
    is_latest: bool = False


class _Head(NamedTuple):
    """The value that names the latest checkpoint."""

    id: str
    versions: dict[str, Version]
    has_writes: bool
    """False: no writes to it are pending. True: some may be."""


class _Memory(Struct, eq=False):
    """What a turn knows of the threads in it, beside what is stored."""

    latest: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """The latest checkpoint by thread and namespace, where there is no head."""
    loaded: set[str] = field(default_factory=set)
    """The ids of the checkpoints that were read."""


_memories: WeakKeyDictionary[Session, _Memory] = WeakKeyDictionary()
_sequence = count()

_MOST_EARLY = 10_000
_early: OrderedDict[tuple[str, str, str, str], None] = OrderedDict()
"""Checkpoints that were written to before they were put. Until then, only the process that makes one knows its id."""


class Thread:
    """One thread of LangGraph in an open session.

    Args:
        session: The session of a turn, or of a snapshot for reading.
        name: Which thread of the session.
        alone: The turn is for a single call of the checkpointer; those of other runs come in between.
    """

    def __init__(self, session: Session, name: str, *, alone: bool = False) -> None:
        self._session = session
        self._name = name
        self._alone = alone
        self._namespace = session.namespace(NAMESPACE)
        self._entries = self._namespace.collection(COLLECTION)
        self._memory = _Memory() if alone else _memories.setdefault(session, _Memory())

    # ------------------------------------------------------------------------------------------------ reading

    async def load(self, ns: str, checkpoint_id: str | None, above: Collection[str] | None = None) -> Stored | None:
        """A checkpoint by its id, or the latest one (None).

        `above` names the checkpoints that the graphs above are at, if this is a subgraph that runs as a task.
        """
        head = self._head(ns)
        if checkpoint_id is None and head is None:
            checkpoint_id = await self._latest(ns, above)
            if checkpoint_id is None:
                return None
            return await self._load_entry(ns, checkpoint_id, is_latest=True)
        if head is not None and checkpoint_id in (None, head.id):
            return await self._load_head(ns, head)
        assert checkpoint_id is not None
        return await self._load_entry(ns, checkpoint_id, is_latest=False)

    async def page(self, ns: str, before: str | None, limit: int | None) -> list[Stored]:
        """The checkpoints of a namespace in falling order of their ids, those below `before`."""
        bound = None if before is None else checkpoint_key(self._name, ns, before)
        prefix = checkpoint_prefix(self._name, ns)
        found = await self._entries.range(prefix=prefix, before=bound, reverse=True, limit=limit)
        return await self._filled(ns, [_entry(value) for _, value in found])

    async def namespaces(self) -> list[str]:
        """All namespaces of the thread that have checkpoints."""
        found = await self._entries.range(prefix=checkpoint_prefix(self._name))
        return sorted({_entry(value).ns for _, value in found})

    async def _load_head(self, ns: str, head: _Head) -> Stored | None:
        key = checkpoint_key(self._name, ns, head.id)
        blob_keys = self._blob_keys(ns, head.versions)
        found = await self._entries.get_many([key, *blob_keys.values()])
        if key not in found:
            return None
        writes = await self._writes(ns, head.id) if head.has_writes else []
        return self._loaded(_entry(found[key]), found, blob_keys, writes, is_latest=True)

    async def _load_entry(self, ns: str, checkpoint_id: str, *, is_latest: bool) -> Stored | None:
        value = await self._entries.get(checkpoint_key(self._name, ns, checkpoint_id))
        if value is None:
            return None
        entry = _entry(value)
        blob_keys = self._blob_keys(ns, entry.versions)
        found = await self._entries.get_many(blob_keys.values())
        return self._loaded(entry, found, blob_keys, await self._writes(ns, checkpoint_id), is_latest=is_latest)

    async def _filled(self, ns: str, entries: list[Stored]) -> list[Stored]:
        """Checkpoints in falling order of their keys, with their values and writes: two round trips for all."""
        if not entries:
            return []
        head = self._head(ns)
        blob_keys = [self._blob_keys(ns, entry.versions) for entry in entries]
        found = await self._entries.get_many({key for keys in blob_keys for key in keys.values()})
        first, last = (writes_prefix(self._name, ns, entry.id) for entry in (entries[-1], entries[0]))
        calls = await self._entries.range(after=first, before=last + "~")
        filled = []
        for entry, keys in zip(entries, blob_keys, strict=True):
            own = writes_prefix(self._name, ns, entry.id)
            writes = _in_order([call for key, call in calls if key.startswith(own)])
            is_latest = head is not None and head.id == entry.id
            filled.append(self._loaded(entry, found, keys, writes, is_latest=is_latest))
        return filled

    def _loaded(
        self,
        entry: Stored,
        found: Mapping[str, Any],
        blob_keys: Mapping[str, str],
        writes: list[Write],
        *,
        is_latest: bool,
    ) -> Stored:
        self._memory.loaded.add(entry.id)
        blobs = {channel: _pair(found[key]) for channel, key in blob_keys.items() if key in found}
        return structs.replace(entry, blobs=blobs, writes=writes, is_latest=is_latest)

    async def _writes(self, ns: str, checkpoint_id: str) -> list[Write]:
        found = await self._entries.range(prefix=writes_prefix(self._name, ns, checkpoint_id))
        return _in_order([call for _, call in found])

    async def _latest(self, ns: str, above: Collection[str] | None = None) -> str | None:
        """The latest checkpoint of a namespace without a head."""
        if not _is_task(ns):
            return None
        known = self._memory.latest
        if (self._name, ns) not in known:
            known[self._name, ns] = await self._look_up(ns, above)
        return known[self._name, ns]

    async def _look_up(self, ns: str, above: Collection[str] | None) -> str | None:
        if above and not self._alone and self._memory.loaded.isdisjoint(above):
            return None  # the task was made in this turn, and so was whatever ran in it
        found = await self._entries.range(prefix=checkpoint_prefix(self._name, ns), reverse=True, limit=1)
        return _entry(found[0][1]).id if found else None

    def _head(self, ns: str) -> _Head | None:
        held = None if _is_task(ns) else self._namespace.get(head_name(self._name, ns))
        return None if held is None else _Head(*held)

    def _blob_keys(self, ns: str, versions: Mapping[str, Version]) -> dict[str, str]:
        return {channel: blob_key(self._name, ns, channel, version) for channel, version in versions.items()}

    # ------------------------------------------------------------------------------------------------ writing

    async def put(self, new: NewCheckpoint, origin: Origin) -> None:
        """Store a checkpoint.

        Raises:
            SessionConflictError: It is the `next` one, and its parent is not the latest: another run has moved the
                thread on.
        """
        versions = await self._stored_versions(new)
        head = self._head(new.ns)
        latest = await self._latest(new.ns) if head is None else head.id
        if origin == "next" and latest not in (new.parent, new.id):
            raise SessionConflictError(
                f"thread {self._session.id!r} of LangGraph was changed by another run since this one read it; what "
                "that one stored stays. Repeat this run, or let runs wait for one another: "
                "`async with saver.turn(thread_id)`."
            )
        if _is_task(new.ns):
            self._memory.latest[self._name, new.ns] = new.id
        elif origin != "copy" or head is None or new.id >= head.id:
            has_writes = self._were_early(new.ns, new.id) or (head is not None and head.id == new.id)
            held = _Head(new.id, versions, has_writes)
            self._namespace.set(head_name(self._name, new.ns), list(held))
        entries: dict[str, Any] = {
            blob_key(self._name, new.ns, channel, new.versions[channel]): list(pair)
            for channel, pair in new.blobs.items()
        }
        entry = [new.ns, new.id, new.parent, list(new.checkpoint), list(new.metadata), versions]
        entries[checkpoint_key(self._name, new.ns, new.id)] = entry
        await self._entries.put_many(entries)

    async def add_writes(
        self, ns: str, checkpoint_id: str, task_id: str, task_path: str, writes: Sequence[Write]
    ) -> None:
        """Store writes of a task to a checkpoint, which may come later itself."""
        # Calls are kept as they come, in an order that holds across turns, and merged when they are read.
        sequence = f"{self._session.revision:012x}{next(_sequence):012x}"
        call = [task_path, task_id, [[write.place, write.channel, *write.value] for write in writes]]
        head = self._head(ns)
        if head is None or head.id != checkpoint_id:
            self._note_early(ns, checkpoint_id)
        elif not head.has_writes:
            self._namespace.set(head_name(self._name, ns), list(head._replace(has_writes=True)))
        await self._entries.put(writes_key(self._name, ns, checkpoint_id, sequence), call)

    def _note_early(self, ns: str, checkpoint_id: str) -> None:
        _early[self._session.id, self._name, ns, checkpoint_id] = None
        if len(_early) > _MOST_EARLY:
            _early.popitem(last=False)  # of a run that failed

    def _were_early(self, ns: str, checkpoint_id: str) -> bool:
        key = (self._session.id, self._name, ns, checkpoint_id)
        if key not in _early:
            return False
        _early.pop(key, None)
        return True

    async def _stored_versions(self, new: NewCheckpoint) -> dict[str, Version]:
        """The channels that have a stored value at their version: of a delta channel, only some versions do."""
        versions = {channel: version for channel, version in new.versions.items() if channel in new.filled}
        unchanged = new.versions.keys() - new.filled - new.changed
        if not unchanged or new.parent is None:
            return versions
        head = self._head(new.ns)
        if head is not None and head.id == new.parent:
            before = head.versions
        else:
            value = await self._entries.get(checkpoint_key(self._name, new.ns, new.parent))
            before = {} if value is None else _entry(value).versions
        return versions | {
            channel: new.versions[channel] for channel in unchanged if before.get(channel) == new.versions[channel]
        }


async def clear(session: Session) -> None:
    """Delete the state of LangGraph in a session: all threads, and what is paused in them."""
    namespace = session.namespace(NAMESPACE)
    names = namespace.keys()
    for name in names:
        if name == PAUSED or name.startswith(HEADS):
            namespace.delete(name)
    await namespace.collection(COLLECTION).delete_prefix("")
    _memories.pop(session, None)


def _is_task(ns: str) -> bool:
    """Whether the namespace is that of a subgraph in a task, whose id is in it."""
    return ":" in ns


def _entry(value: list[Any]) -> Stored:
    ns, checkpoint_id, parent, checkpoint, metadata, versions = value
    return Stored(ns, checkpoint_id, parent, _pair(checkpoint), _pair(metadata), versions)


def _pair(value: list[Any]) -> Pair:
    return value[0], value[1]


def _in_order(calls: list[list[Any]]) -> list[Write]:
    """Merge what calls of `put_writes` stored, the first one first."""
    kept: dict[tuple[str, int], Write] = {}
    for task_path, task_id, writes in calls:
        for place, channel, form, data in writes:
            if place < 0 or (task_id, place) not in kept:
                kept[task_id, place] = Write(task_path, task_id, place, channel, (form, data))
    return sorted(kept.values(), key=lambda write: writes_sort_key(write.task_path, write.task_id, write.place))
