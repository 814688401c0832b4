"""A LangGraph thread as it is kept in a session: checkpoints, values of channels, pending writes, and heads.

Checkpoints, channel values and writes are entries of one collection, so that reading the latest checkpoint takes one
`get_many`, one more for the chunks of lists, and no round trip in the process that wrote it. A small value, the *head*,
names the latest checkpoint and the keys of what belongs to it; it is there as soon as the session is open. The
namespace of a subgraph that runs as a task carries the task's id, is another one at every run, and has no head: its
latest checkpoint is looked up.

Everything here is bytes from a serializer, and, of lists, the segments that they are in.
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
from agent_sessions.errors import SessionConflictError, StateLostError
from agent_sessions.stores.base import Key

from .chunks import Chunk, ListName, Pair, Piece, Segment, Segments
from .keys import (
    COLLECTION,
    NAMESPACE,
    base_of,
    blob_key,
    checkpoint_key,
    checkpoint_prefix,
    chunk_key,
    head_name,
    run_key,
    thread_prefix,
    writes_key,
    writes_prefix,
)
from .lists import EncodedList, Lists

Version = str | int | float

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
    lists: Mapping[str, EncodedList]
    """Likewise, of those whose value is a list."""
    run_id: str | None
    """The run that made it, if it has a name."""
    messages: int | None = 0
    """How many messages its state has; None: it does not say, and they are as many as before."""


class Stored(Struct, frozen=True):
    """A checkpoint as it is stored."""

    ns: str
    id: str
    parent: str | None
    checkpoint: Pair
    metadata: Pair
    versions: dict[str, Version]
    """The channels that have a stored value, and at which version."""
    run_id: str | None
    blobs: dict[str, Pair] = {}
    """Their values."""
    lists: dict[str, list[Piece]] = {}
    """Likewise, of those whose value is a list."""
    writes: list[Write] = []
    """In the order in which they are applied."""
    is_latest: bool = False


class Head(NamedTuple):
    """The value that names the latest checkpoint."""

    id: str
    versions: dict[str, Version]
    has_writes: bool
    """False: no writes to it are pending. True: some may be."""
    messages: int | None
    """How many messages of this thread the session's record counts; None: they are not counted."""


class _Memory(Struct, eq=False):
    """What a turn knows of the threads in it, beside what is stored."""

    latest: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """The latest checkpoint by thread and namespace, where there is no head."""
    loaded: set[str] = field(default_factory=set)
    """The ids of the checkpoints that were read."""


_memories: WeakKeyDictionary[Session, _Memory] = WeakKeyDictionary()
_sequence = count()

_ANCESTORS_AT_ONCE = 50

_MOST_EARLY = 10_000
_early: OrderedDict[tuple[str, str, str, str], None] = OrderedDict()
"""Checkpoints that were written to before they were put. Until then, only the process that makes one knows its id."""


class Thread:
    """One thread of LangGraph in an open session.

    Args:
        session: The session of a turn, or of a snapshot for reading.
        name: Which thread of the session.
        lists: What encodes lists, and knows those that were seen of late.
        alone: The turn is for a single call of the checkpointer; those of other runs come in between.
        counted: The session's record counts its messages, as far as they are in the root namespace: subgraphs have them
            from there, or give them there.
    """

    def __init__(self, session: Session, name: str, lists: Lists, *, alone: bool = False, counted: bool = True) -> None:
        self._session = session
        self._key = session_key(session)
        self._name = name
        self._lists = lists
        self._alone = alone
        self._counted = counted
        self._namespace = session.namespace(NAMESPACE)
        self._entries = self._namespace.collection(COLLECTION)
        self._memory = _Memory() if alone else _memories.setdefault(session, _Memory())

    # ------------------------------------------------------------------------------------------------ reading

    async def load(self, ns: str, checkpoint_id: str | None, above: Collection[str] | None = None) -> Stored | None:
        """A checkpoint by its id, or the latest one (None).

        `above` names the checkpoints that the graphs above are at, if this is a subgraph that runs as a task.
        """
        base = base_of(self._name, ns)
        head = self._head(ns)
        if head is not None and checkpoint_id in (None, head.id):
            return await self._load_head(base, head)
        is_latest = checkpoint_id is None
        if checkpoint_id is None:
            checkpoint_id = await self._latest(ns, above)
        if checkpoint_id is None:
            return None
        entry = await self.entry(ns, checkpoint_id)
        if entry is None:
            return None
        found = await self._entries.get_many(_blob_keys(base, entry.versions).values())
        writes = await self._writes(base, checkpoint_id)
        return await self._loaded(base, entry, found, writes, is_latest=is_latest)

    async def entry(self, ns: str, checkpoint_id: str) -> Stored | None:
        """A checkpoint without the values of its channels and the writes to it."""
        value = await self._entries.get(checkpoint_key(base_of(self._name, ns), checkpoint_id))
        return None if value is None else as_stored(value)

    async def page(self, ns: str, before: str | None, limit: int | None) -> list[Stored]:
        """The checkpoints of a namespace in falling order of their ids, those below `before`."""
        base = base_of(self._name, ns)
        bound = None if before is None else checkpoint_key(base, before)
        found = await self._entries.range(prefix=checkpoint_prefix(base), before=bound, reverse=True, limit=limit)
        return await self._filled(base, [as_stored(value) for _, value in found])

    async def namespaces(self) -> list[str]:
        """All namespaces of the thread that have checkpoints."""
        found = await self._entries.range(prefix=thread_prefix(self._name))
        return sorted({as_stored(value).ns for _, value in found})

    async def ancestry(self, ns: str, checkpoint_id: str | None, channels: Collection[str]) -> list[Stored]:
        """The checkpoints above one, the nearest first, up to where each of the channels has had a stored value.

        Those have the writes to them, and the values of the channels that are looked for.
        """
        if checkpoint_id is None:
            head = self._head(ns)
            checkpoint_id = await self._latest(ns) if head is None else head.id
        target = None if checkpoint_id is None else await self.entry(ns, checkpoint_id)
        parent = None if target is None else target.parent
        base, found = base_of(self._name, ns), list[Stored]()
        read: dict[str, Stored] = {}
        missing = set(channels)
        while parent is not None and missing:
            if parent not in read:
                read |= await self._entries_down_from(base, parent)
            if parent not in read:
                break
            entry = read[parent]
            found.append(structs.replace(entry, versions={c: v for c, v in entry.versions.items() if c in missing}))
            missing -= entry.versions.keys()
            parent = entry.parent
        return await self._filled(base, found)

    async def _entries_down_from(self, base: str, checkpoint_id: str) -> dict[str, Stored]:
        before = checkpoint_key(base, checkpoint_id) + "!"
        found = await self._entries.range(
            prefix=checkpoint_prefix(base), before=before, reverse=True, limit=_ANCESTORS_AT_ONCE
        )
        return {entry.id: entry for entry in (as_stored(value) for _, value in found)}

    async def _load_head(self, base: str, head: Head) -> Stored | None:
        key = checkpoint_key(base, head.id)
        found = await self._entries.get_many([key, *_blob_keys(base, head.versions).values()])
        if key not in found:
            return None
        writes = await self._writes(base, head.id) if head.has_writes else []
        return await self._loaded(base, as_stored(found[key]), found, writes, is_latest=True)

    async def _filled(self, base: str, entries: list[Stored]) -> list[Stored]:
        """Checkpoints with their values and writes: three round trips for all."""
        if not entries:
            return []
        keys = {key for entry in entries for key in _blob_keys(base, entry.versions).values()}
        found = await self._entries.get_many(keys)
        ids = [entry.id for entry in entries]
        first, last = writes_prefix(base, min(ids)), writes_prefix(base, max(ids))
        calls = await self._entries.range(after=first, before=last + "~")
        await self._learn_chunks(base, found.values())
        head = self._head(entries[0].ns)
        filled = []
        for entry in entries:
            own = writes_prefix(base, entry.id)
            writes = _in_order([call for key, call in calls if key.startswith(own)])
            is_latest = head is not None and head.id == entry.id
            filled.append(await self._loaded(base, entry, found, writes, is_latest=is_latest))
        return filled

    async def _loaded(
        self, base: str, entry: Stored, found: Mapping[str, Any], writes: list[Write], *, is_latest: bool
    ) -> Stored:
        self._memory.loaded.add(entry.id)
        blobs: dict[str, Pair] = {}
        segments: dict[str, Segments] = {}
        for channel, key in _blob_keys(base, entry.versions).items():
            value = found.get(key)
            if value is None:
                continue
            if value[0] is None:
                segments[channel] = segments_in(value)
            else:
                blobs[channel] = _pair(value)
        chunks = await self._chunks(base, [one for named in segments.values() for one in named])
        lists = {channel: [Piece(chunks[one.chunk], *one[1:]) for one in named] for channel, named in segments.items()}
        return structs.replace(entry, blobs=blobs, lists=lists, writes=writes, is_latest=is_latest)

    async def _learn_chunks(self, base: str, blobs: Collection[Any]) -> None:
        """Read all chunks of these values at once that are not known."""
        await self._chunks(base, [one for value in blobs if value[0] is None for one in segments_in(value)])

    async def _chunks(self, base: str, segments: Sequence[Segment]) -> dict[bytes, Chunk]:
        chunks: dict[bytes, Chunk] = {}
        missing: dict[str, bytes] = {}
        for chunk_id in {segment.chunk for segment in segments}:
            known = self._lists.known(self._key, chunk_id)
            if known is None:
                missing[chunk_key(base, chunk_id)] = chunk_id
            else:
                chunks[chunk_id] = known
        if missing:
            found = await self._entries.get_many(missing)
            for key, chunk_id in missing.items():
                if key not in found:
                    raise StateLostError(f"a list of LangGraph in session {self._session.id!r} has lost some items")
                chunks[chunk_id] = self._lists.learn(self._key, chunk_id, _pair(found[key]))
        return chunks

    async def _writes(self, base: str, checkpoint_id: str) -> list[Write]:
        found = await self._entries.range(prefix=writes_prefix(base, checkpoint_id))
        return _in_order([call for _, call in found])

    async def _latest(self, ns: str, above: Collection[str] | None = None) -> str | None:
        """The latest checkpoint of a namespace without a head."""
        if not is_task(ns):
            return None
        known = self._memory.latest
        if (self._name, ns) not in known:
            known[self._name, ns] = await self._look_up(ns, above)
        return known[self._name, ns]

    async def _look_up(self, ns: str, above: Collection[str] | None) -> str | None:
        if above and not self._alone and self._memory.loaded.isdisjoint(above):
            return None  # the task was made in this turn, and so was whatever ran in it
        prefix = checkpoint_prefix(base_of(self._name, ns))
        found = await self._entries.range(prefix=prefix, reverse=True, limit=1)
        return as_stored(found[0][1]).id if found else None

    def _head(self, ns: str) -> Head | None:
        held = None if is_task(ns) else self._namespace.get(head_name(base_of(self._name, ns)))
        return None if held is None else Head(*held)

    # ------------------------------------------------------------------------------------------------ writing

    async def put(self, new: NewCheckpoint, origin: Origin) -> None:
        """Store a checkpoint.

        Raises:
            SessionConflictError: It is the `next` one, and its parent is not the latest: another run has moved the
                thread on.
        """
        head = self._head(new.ns)
        latest = await self._latest(new.ns) if head is None else head.id
        if origin == "next" and latest not in (new.parent, new.id):
            raise SessionConflictError(
                f"thread {self._session.id!r} of LangGraph was changed by another run since this one read it; what "
                "that one stored stays. Repeat this run, or let runs wait for one another: "
                "`async with saver.turn(thread_id)`."
            )
        base = base_of(self._name, new.ns)
        before = await self._versions_before(new, head)
        versions = _stored_versions(new, before)
        entries: dict[str, Any] = {
            blob_key(base, channel, new.versions[channel]): list(pair) for channel, pair in new.blobs.items()
        }
        for channel, encoded in new.lists.items():
            entries |= await self._list_entries(base, channel, new.versions[channel], before.get(channel), encoded)
        if new.run_id is not None:
            entries[run_key(new.run_id, base)] = None
        entry = [new.ns, new.id, new.parent, list(new.checkpoint), list(new.metadata), versions, new.run_id]
        entries[checkpoint_key(base, new.id)] = entry
        if is_task(new.ns):
            self._memory.latest[self._name, new.ns] = new.id
        elif origin != "copy" or head is None or new.id >= head.id:
            has_writes = self._were_early(new.ns, new.id) or (head is not None and head.id == new.id)
            self._namespace.set(head_name(base), list(Head(new.id, versions, has_writes, self._count(new, head))))
        await self._entries.put_many(entries)

    async def add_writes(
        self, ns: str, checkpoint_id: str, task_id: str, task_path: str, writes: Sequence[Write]
    ) -> None:
        """Store writes of a task to a checkpoint, which may come later itself."""
        # Calls are kept as they come, in an order that holds across turns, and merged when they are read.
        sequence = f"{self._session.revision:012x}{next(_sequence):012x}"
        call = [task_path, task_id, [[write.place, write.channel, *write.value] for write in writes]]
        base = base_of(self._name, ns)
        head = self._head(ns)
        if head is None or head.id != checkpoint_id:
            self._note_early(ns, checkpoint_id)
        elif not head.has_writes:
            self._namespace.set(head_name(base), list(head._replace(has_writes=True)))
        await self._entries.put(writes_key(base, checkpoint_id, sequence), call)

    async def _versions_before(self, new: NewCheckpoint, head: Head | None) -> dict[str, Version]:
        """The channels that have a stored value in the checkpoint that the new one follows on."""
        if new.parent is None or not (new.lists or new.versions.keys() - new.filled - new.changed):
            return {}
        if head is not None and head.id == new.parent:
            return head.versions
        entry = await self.entry(new.ns, new.parent)
        return {} if entry is None else entry.versions

    async def _list_entries(
        self, base: str, channel: str, version: Version, before: Version | None, encoded: EncodedList
    ) -> dict[str, Any]:
        """The entries of a list, encoded again if it does not follow on the version that was guessed."""
        held = None if before is None else await self._entries.get(blob_key(base, channel, before))
        stored = () if held is None or held[0] is not None else segments_in(held)
        if stored != encoded.base:
            chunks = await self._chunks(base, stored)
            pieces = [Piece(chunks[one.chunk], *one[1:]) for one in stored]
            encoded = self._lists.encoded(self._key, encoded.value, pieces)
        entries: dict[str, Any] = {chunk_key(base, one): list(pair) for one, pair in encoded.new_chunks.items()}
        entries[blob_key(base, channel, version)] = [None, *(part for one in encoded.segments for part in one)]
        self._lists.note_latest(ListName(self._key, base, channel), encoded.segments)
        return entries

    def _count(self, new: NewCheckpoint, head: Head | None) -> int | None:
        """Let the record count the messages of the latest checkpoint in place of those of the one before."""
        if new.ns or not self._counted:
            return None
        before = 0 if head is None else head.messages or 0
        messages = before if new.messages is None else new.messages
        self._session.count_messages(messages - before)
        return messages

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


def forget(session: Session) -> None:
    """Forget what the turn knows of its threads: they have been changed from outside."""
    _memories.pop(session, None)


def session_key(session: Session) -> Key:
    """The address of a session."""
    return Key(session.tenant_id, "session", session.id)


def is_task(ns: str) -> bool:
    """Whether the namespace is that of a subgraph in a task, whose id is in it."""
    return ":" in ns


def as_stored(value: list[Any]) -> Stored:
    """The entry of a checkpoint."""
    ns, checkpoint_id, parent, checkpoint, metadata, versions, run_id = value
    return Stored(ns, checkpoint_id, parent, _pair(checkpoint), _pair(metadata), versions, run_id)


def segments_in(value: list[Any]) -> Segments:
    """The segments in the entry of a list."""
    flat = iter(value[1:])
    return tuple(Segment(*one) for one in zip(flat, flat, flat, strict=True))


def _stored_versions(new: NewCheckpoint, before: Mapping[str, Version]) -> dict[str, Version]:
    """The channels that have a stored value at their version: of a delta channel, only some versions do."""
    versions = {channel: version for channel, version in new.versions.items() if channel in new.filled}
    unchanged = new.versions.keys() - new.filled - new.changed
    return versions | {
        channel: new.versions[channel] for channel in unchanged if before.get(channel) == new.versions[channel]
    }


def _blob_keys(base: str, versions: Mapping[str, Version]) -> dict[str, str]:
    return {channel: blob_key(base, channel, version) for channel, version in versions.items()}


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
