"""Copying one thread, some checkpoints at a time, from the oldest on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol
from msgspec import Struct

from .compare import WRITES
from .source import Original, Place, Source
from .target import Held, Target

T = TypeVar("T")

BATCH_CHECKPOINTS = 20
BATCH_BYTES = 4 * 2**20
"""A batch is closed when its new values take so many, encoded."""


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


class _Batch(NamedTuple):
    originals: list[Original]
    read: int
    """How many places were read for it."""


Action = Literal["put", "add writes", "replace"]


class _Plan(NamedTuple):
    counts: Counts
    actions: dict[Place, Action]
    refused: str | None
    """Why something of it, or of what was before it, is not stored."""


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
        self.refused: str | None = None
        """Why some checkpoints were not stored: what was found first."""
        self._source = source
        self._executor = executor
        self._target = target
        self._thread_id = thread_id
        self._report = report
        self._ids: set[str] = set()
        """The ids of the namespace at the source."""
        self._known: set[tuple[str, Any]] = set()
        """The versions of its channels of which the values are there."""

    async def run(self) -> bool:
        """Copy it. Returns False if the source has no such thread.

        Once a checkpoint differs from what is there, nothing more is stored, since what follows builds on it. Graphs
        that run as tasks of others come before those, so that what can be resumed has all it needs.

        Raises:
            NotTheSameError: What was stored does not read back as the source has it.
            SourceError: The source is away.
            SessionError: A checkpoint can't be decoded, or not be stored.
        """
        places = await self._blocking(self._source.places, self._thread_id)
        namespaces = [list(group) for _, group in groupby(places, lambda place: place.ns)]
        for namespace in reversed(namespaces):
            self._ids, self._known = {place.id for place in namespace}, set()
            while namespace:
                batch = await self._blocking(self._read, namespace)
                del namespace[: batch.read]
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
        if plan.actions and not self._target.dry_run:
            plan = await self._store(batch)
            await self._verify([one for one in batch if one.place in plan.actions])
        self.refused = plan.refused
        self._known |= {version for one in batch for version in _versions(one)}
        return plan.counts

    async def _store(self, batch: list[Original]) -> _Plan:
        """Store what is missing in one turn; only what it finds there itself it can rely on."""
        async with self._target.manager.open(self._thread_id) as session:
            plan = self._plan(batch, await self._target.held_in_turn(session, batch))
            known = self._known.copy()
            for one in batch:
                match plan.actions.get(one.place):
                    case "put":
                        await self._target.put(session, one, known)
                    case "add writes":
                        await self._target.put_writes(session, one)
                    case "replace":
                        await self._target.drop_writes(session, one)
                        await self._target.put(session, one, set())
                known |= _versions(one)
        return plan

    def _plan(self, batch: list[Original], held: Held) -> _Plan:
        """What is to be done, with what is there of a batch."""
        counts, actions, refused = Counts(seen=len(batch)), dict[Place, Action](), self.refused
        for one in batch:
            action, objection = self._action(one, held)
            if objection is not None and self._target.overwrite:
                objection = None
            refused = refused or objection
            if action is None:
                counts.same += 1
            elif refused is not None:
                counts.refused += 1
            else:
                counts.replaced += action == "replace"
                counts.imported += action != "replace"
                actions[one.place] = action
        return _Plan(counts, actions, refused)

    def _action(self, one: Original, held: Held) -> tuple[Action | None, str | None]:
        """What is to be done with a checkpoint, and what speaks against it."""
        stored, compare = held.checkpoints.get(one.place.id), self._target.compare
        has_gone_on = held.head is not None and held.head not in self._ids
        both = f"the thread has gone on here, and at the source, with checkpoint {one.place.id}"
        if stored is None:
            return "put", both if has_gone_on else None
        difference = compare.difference(one, stored)
        if difference is None or (difference == WRITES and compare.has_all_writes(one, stored)):
            return None, None  # with more writes, it was imported and has been worked on here since
        if difference == WRITES and compare.adds_writes(one, stored):
            return "add writes", both if has_gone_on else None
        return "replace", f"checkpoint {one.place.id} is there already, and differs in {difference}"

    async def _verify(self, batch: list[Original]) -> None:
        """Read back what was stored, from the store itself."""
        held = await self._target.held(self._thread_id, batch)
        for one in batch:
            if self._action(one, held)[0] is not None:
                raise NotTheSameError(f"checkpoint {one.place.id} did not come back as it was stored")

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
