"""Copying one thread, some checkpoints at a time, from the oldest on."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from msgspec import Struct

from agent_sessions import Session, SessionManager

from ..coding import config_of
from ..keys import COLLECTION, NAMESPACE, base_of, writes_prefix
from ..saver import SessionSaver
from .compare import WRITES, Comparison
from .source import Original, Place, Source

T = TypeVar("T")

BATCH_CHECKPOINTS = 20
BATCH_BYTES = 4 * 2**20
"""A batch is closed when its new values take so many, encoded."""

_USUAL_ID = re.compile(r"[0-9A-Za-z-]{1,60}")
_AFTER_ALL = "~"
"""Follows the last character of any usual id."""


class Counts(Struct):
    """What has become of checkpoints."""

    seen: int = 0
    imported: int = 0
    """Stored here now. In a dry run: those that would be."""
    same: int = 0
    """Were there already."""
    replaced: int = 0
    """Were there, differed, and were overwritten. In a dry run: those that would be."""
    refused: int = 0
    """Differ from what is there, or come with those that do, and were left out."""

    def add(self, other: Counts) -> None:
        """Count these too."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class NotTheSameError(Exception):
    """What was read back is not what the source has."""


class Target:
    """Where threads are copied to.

    Args:
        saver: The checkpointer to go on with.
        dry_run: Store nothing.
        overwrite: Replace what differs.
    """

    def __init__(self, saver: SessionSaver, *, dry_run: bool, overwrite: bool) -> None:
        self.saver = saver
        self.dry_run = dry_run
        self.overwrite = overwrite
        self.compare = Comparison(saver.serde)
        # What this process has written it must not find in its memory when it looks whether it is there.
        self.reader = SessionSaver(
            SessionManager(self.manager.store, settings=self.manager.settings, tenant_id=self.manager.tenant_id),
            thread=saver._thread,
            serde=copy.copy(saver.serde),
        )

    @property
    def manager(self) -> SessionManager:
        """Where the sessions are."""
        return self.saver._access.manager

    async def held(self, thread_id: str, batch: Sequence[Original]) -> dict[str, CheckpointTuple]:
        """What is there of the checkpoints of a batch, and between them."""
        return await _between(self.reader, thread_id, batch)

    async def held_in_turn(self, session: Session, batch: Sequence[Original]) -> dict[str, CheckpointTuple]:
        """The same in a turn on the session."""
        return await _between(self.saver, session.id, batch)

    async def put(self, session: Session, one: Original, known: set[tuple[str, Any]]) -> None:
        """Store a checkpoint with its writes, in a turn. Of its values, those whose version is known are there."""
        values, versions = one.checkpoint["channel_values"], one.checkpoint["channel_versions"]
        new = {name: at for name, at in versions.items() if name not in values or (name, at) not in known}
        parent = {"thread_id": session.id, "checkpoint_ns": one.place.ns}
        if one.parent is not None:
            parent["checkpoint_id"] = one.parent
        await self.saver.aput({"configurable": parent}, one.checkpoint, one.metadata, new)
        config = config_of(session.id, *one.place)
        for (task_path, task_id, _), writes in groupby(one.writes, _call):
            await self.saver.aput_writes(config, [(write.channel, write.value) for write in writes], task_id, task_path)

    async def drop_writes(self, session: Session, one: Original) -> None:
        """Take the pending writes of a checkpoint away, in a turn."""
        prefix = writes_prefix(base_of(self.saver._thread, one.place.ns), one.place.id)
        await session.namespace(NAMESPACE).collection(COLLECTION).delete_prefix(prefix)


def _call(write: Any) -> tuple[str, str, bool]:
    """The call of `put_writes` that a write belongs to: special ones have no place among the others."""
    return write.task_path, write.task_id, write.channel in WRITES_IDX_MAP


async def _between(saver: SessionSaver, thread_id: str, batch: Sequence[Original]) -> dict[str, CheckpointTuple]:
    """The stored checkpoints from the first to the last of a batch, by their ids."""
    first, last = batch[0].place, batch[-1].place
    if not all(_USUAL_ID.fullmatch(one.place.id) for one in batch):  # stored in another order than that of their ids
        single = [await saver.aget_tuple(config_of(thread_id, *one.place)) for one in batch]
        return {one.place.id: found for one, found in zip(batch, single, strict=True) if found is not None}
    found: dict[str, CheckpointTuple] = {}
    config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": first.ns}}
    before = last.id + _AFTER_ALL
    while True:
        ids = []
        async for one in saver.alist(config, before={"configurable": {"checkpoint_id": before}}, limit=len(batch)):
            ids.append(str(one.config["configurable"]["checkpoint_id"]))
            found[ids[-1]] = one
        if len(ids) < len(batch) or ids[-1] <= first.id:
            return found
        before = ids[-1]


class _Batch(NamedTuple):
    originals: list[Original]
    read: int
    """How many places were read for it."""


class _Plan(NamedTuple):
    counts: Counts
    wanted: list[Original]
    """The checkpoints to be stored."""
    differing: tuple[Place, str] | None


class ThreadCopy:
    """Copies one thread.

    Args:
        source: Where it comes from.
        executor: The thread in which the source is read.
        target: Where it goes.
        thread_id: Which one.
        report: Told what became of each batch.
    """

    def __init__(
        self, source: Source, executor: Executor, target: Target, thread_id: str, report: Callable[[Counts], None]
    ) -> None:
        self.differing: tuple[Place, str] | None = None
        """The first checkpoint that differs from what is there, and in what."""
        self._source = source
        self._executor = executor
        self._target = target
        self._thread_id = thread_id
        self._report = report
        self._known: set[tuple[str, Any]] = set()

    async def run(self) -> bool:
        """Copy it. Returns False if the source has no such thread.

        Once a checkpoint differs from what is there, nothing more is stored, since what follows builds on it.

        Raises:
            NotTheSameError: What was stored does not read back as the source has it.
            SourceError: The source is away.
            SessionError: A checkpoint can't be decoded, or not be stored.
        """
        places = await self._blocking(self._source.places, self._thread_id)
        for _, group in groupby(places, lambda place: place.ns):
            of_namespace = list(group)
            self._known.clear()
            while of_namespace:
                batch = await self._blocking(self._read, of_namespace)
                del of_namespace[: batch.read]
                if batch.originals:
                    self._report(await self._copy(batch.originals))
        return bool(places)

    def _read(self, places: Sequence[Place]) -> _Batch:
        originals, read, size = list[Original](), 0, 0
        known = self._known.copy()
        for place in places[:BATCH_CHECKPOINTS]:
            read += 1
            original = self._source.read(self._thread_id, place)
            if original is None:
                continue
            originals.append(original)
            size += _size(original, known, self._target.saver.serde)
            known |= _versions(original)
            if size >= BATCH_BYTES:
                break
        return _Batch(originals, read)

    async def _copy(self, batch: list[Original]) -> Counts:
        plan = self._plan(batch, await self._target.held(self._thread_id, batch))
        if plan.wanted and not self._target.dry_run:
            plan = await self._store(batch)
            await self._verify(plan.wanted)
        self.differing = plan.differing
        self._known |= {version for one in batch for version in _versions(one)}
        return plan.counts

    async def _store(self, batch: list[Original]) -> _Plan:
        """Store what is missing in one turn; only what it finds there itself it can rely on."""
        async with self._target.manager.open(self._thread_id) as session:
            held = await self._target.held_in_turn(session, batch)
            plan, known = self._plan(batch, held), self._known.copy()
            wanted = {one.place for one in plan.wanted}
            for one in batch:
                if one.place in wanted and one.place.id not in held:
                    await self._target.put(session, one, known)
                elif one.place in wanted:
                    await self._target.drop_writes(session, one)
                    await self._target.put(session, one, set())
                known |= _versions(one)
        return plan

    def _plan(self, batch: list[Original], held: dict[str, CheckpointTuple]) -> _Plan:
        """What is to be done, with what is there of a batch."""
        counts, wanted, differing = Counts(seen=len(batch)), list[Original](), self.differing
        for one in batch:
            difference = self._difference(one, held.get(one.place.id))
            if difference is None:
                counts.same += 1
            elif self._target.overwrite and one.place.id in held:
                counts.replaced += 1
                wanted.append(one)
            elif differing is None and one.place.id not in held:
                counts.imported += 1
                wanted.append(one)
            else:
                counts.refused += 1
                differing = differing or (one.place, difference)
        return _Plan(counts, wanted, differing)

    def _difference(self, original: Original, stored: CheckpointTuple | None) -> str | None:
        if stored is None:
            return "all of it"
        difference = self._target.compare.difference(original, stored)
        if difference == WRITES and self._target.compare.has_gone_on(original, stored):
            return None  # it was imported, and has been worked on here since
        return difference

    async def _verify(self, batch: list[Original]) -> None:
        """Read back what was stored, from the store itself."""
        held = await self._target.held(self._thread_id, batch)
        for one in batch:
            difference = self._difference(one, held.get(one.place.id))
            if difference is not None:
                raise NotTheSameError(f"checkpoint {one.place.id}: {difference} came back otherwise than it was put")

    async def _blocking(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _versions(original: Original) -> set[tuple[str, Any]]:
    """The versions of which it has the values."""
    values = original.checkpoint["channel_values"]
    return {(name, at) for name, at in original.checkpoint["channel_versions"].items() if name in values}


def _size(original: Original, known: set[tuple[str, Any]], serde: SerializerProtocol) -> int:
    """About how many bytes are to be written of it."""
    values = original.checkpoint["channel_values"]
    new = [values[name] for name, _ in _versions(original) - known]
    return sum(len(serde.dumps_typed(value)[1]) for value in [*new, *(write.value for write in original.writes)])
