"""`SessionSaver`: LangGraph's checkpointer, whose threads are sessions."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from agent_sessions import Session, SessionManager, SyncSession, SyncSessionManager
from agent_sessions.background import call
from agent_sessions.errors import InvalidError, SessionNotFoundError

from . import upkeep
from .access import Access
from .coding import Coder, config_of, origin_of
from .places import Listing, Place
from .serde import StrictSerializer
from .thread import NewCheckpoint, Stored, Thread, Write

T = TypeVar("T")
Work = Callable[[Thread], Awaitable[T]]


class SessionSaver(BaseCheckpointSaver[str]):
    """Keeps the checkpoints of LangGraph in sessions: `graph.compile(checkpointer=SessionSaver())`.

    The thread id is the session id. Each call is a short turn of its own; inside a turn of that session it is part of
    the turn, and stored with it.

    Runs on one thread don't wait for one another, but none is lost silently: a run that stores a checkpoint on top of
    one that is not the latest any more gets `SessionConflictError`. Starting from an older checkpoint, by its id, is
    fine. `async with saver.turn(thread_id)` makes runs wait.

    Args:
        manager: Where the sessions are. None: `SessionManager.from_env()`, as it is at the first call.
        thread: Graphs of one session that shall not share their state need different ones. A graph that `Runner` runs
            has its name.
        allowed_types: Types of your own in the state of graphs. Stored data can't make objects of other types.
        serde: A serializer to use in place of LangGraph's with these types.
    """

    def __init__(
        self,
        manager: SessionManager | None = None,
        *,
        thread: str = "",
        allowed_types: Iterable[type] = (),
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde or StrictSerializer(allowed_types))
        self._access = Access(manager)
        self._thread = thread
        self._counted = True
        self._allowing: dict[frozenset[Any], BaseCheckpointSaver[str]] = {}

    @asynccontextmanager
    async def turn(self, thread_id: str, *, wait_s: float | None = None) -> AsyncIterator[Session]:
        """One turn on the thread's session: runs inside it are stored together at its end, and other turns wait.

        Arguments and errors as of `SessionManager.open`.
        """
        async with self._access.manager.open(str(thread_id), wait_s=wait_s) as session:
            yield session

    @contextmanager
    def turn_sync(self, thread_id: str, *, wait_s: float | None = None) -> Iterator[SyncSession]:
        """`turn`, blocking."""
        with SyncSessionManager(manager=self._access.manager).open(str(thread_id), wait_s=wait_s) as session:
            yield session

    def get_next_version(self, current: str | int | float | None, channel: None) -> str:
        """A version that follows, as `InMemorySaver` makes them."""
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{random.random():016}"

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> BaseCheckpointSaver[str]:
        """A saver of the same sessions that allows these types too; for the same types the same one.

        What a process knows of lists, it knows by the serializer.
        """
        extra = frozenset(extra_allowlist)
        if extra not in self._allowing:
            allowing = super().with_allowlist(extra)
            if isinstance(allowing, SessionSaver) and allowing is not self:
                allowing._allowing = {}
            self._allowing[extra] = allowing
        return self._allowing[extra]

    # ------------------------------------------------------------------------------------------------ async

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the latest one of its thread."""
        place = Place.of(config)
        return self._found(place, await self._reading(place, _loading(place, config)))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, the latest first; those whose metadata has all that the filter says.

        Without a config, of all threads of the tenant, one after another.
        """
        listing = Listing.of(config, filter, before, limit)
        for session_id in [listing.place.session_id] if config else await self._access.ids():
            listing.enter(session_id)
            for ns in await self._reading(listing.place, listing.namespaces):
                listing.start(ns)
                while listing.goes_on:
                    for stored in await self._reading(listing.place, listing.page):
                        if (found := self._matching(listing, stored)) is not None:
                            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        Raises:
            SessionConflictError: Another run has moved the thread on.
        """
        place = Place.of(config)
        new = self._coder(place).encoded(place, config, checkpoint, metadata, new_versions)
        await self._writing(place, _putting(config, new))
        return config_of(place.session_id, place.ns, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task has written to a checkpoint."""
        place = Place.of(config)
        encoded = self._coder(place).encoded_writes(writes, task_id, task_path)
        await self._writing(place, _adding(place, encoded, task_id, task_path))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What delta channels are rebuilt from: the last stored value above a checkpoint, and the writes since."""
        place = Place.of(config)
        return self._coder(place).history(await self._reading(place, _tracing(place, channels)), channels)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all state of LangGraph in the session, of all graphs. The session itself stays."""
        await self._changing(thread_id, upkeep.clear)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of these runs, in all sessions of the tenant; it reads each of them.

        A run's id is the `run_id` in the metadata of its config.
        """
        wanted = {str(run_id) for run_id in run_ids}

        async def has_runs(session: Session, _: bool) -> bool:
            return await upkeep.has_runs(session, wanted)

        for session_id in await self._access.ids() if wanted else ():
            if await self._access.read(session_id, has_runs):
                await self._changing(session_id, lambda session: upkeep.delete_runs(session, wanted))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all state of LangGraph from one session to another, which keeps what it has.

        A large state is stored in several turns. If that is broken off, repeat it: what is there already is stored as
        it was.
        """

        async def reading(session: Session, _: bool) -> upkeep.Copy:
            return await upkeep.copied(session)

        copy = await self._access.read(str(source_thread_id), reading)
        for place, entries in enumerate(copy.batches):
            if entries:
                is_last = place == len(copy.batches) - 1
                await self._access.write(str(target_thread_id), _pasting(copy, entries, is_last=is_last))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints of threads.

        Args:
            thread_ids: The threads.
            strategy: `keep_latest`: all but the latest one of each graph and subgraph, and those that its delta
                channels are rebuilt from. `delete`: all.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InvalidError("STRATEGY", 'the strategy is "keep_latest" or "delete"', field="strategy")

        async def prune(session: Session) -> None:
            await upkeep.prune(session, self.serde.loads_typed)

        for thread_id in thread_ids:
            await self._changing(thread_id, prune if strategy == "keep_latest" else upkeep.clear)

    # ------------------------------------------------------------------------------------------------ sync

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`aget_tuple`, blocking."""
        place = Place.of(config)
        return self._found(place, call(self._reading, place, _loading(place, config)))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """`alist`, blocking."""
        listing = Listing.of(config, filter, before, limit)
        for session_id in [listing.place.session_id] if config else call(self._access.ids):
            listing.enter(session_id)
            for ns in call(self._reading, listing.place, listing.namespaces):
                listing.start(ns)
                while listing.goes_on:
                    for stored in call(self._reading, listing.place, listing.page):
                        if (found := self._matching(listing, stored)) is not None:
                            yield found

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`aput`, blocking."""
        place = Place.of(config)
        new = self._coder(place).encoded(place, config, checkpoint, metadata, new_versions)
        call(self._writing, place, _putting(config, new))
        return config_of(place.session_id, place.ns, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`aput_writes`, blocking."""
        place = Place.of(config)
        encoded = self._coder(place).encoded_writes(writes, task_id, task_path)
        call(self._writing, place, _adding(place, encoded, task_id, task_path))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`aget_delta_channel_history`, blocking."""
        place = Place.of(config)
        return self._coder(place).history(call(self._reading, place, _tracing(place, channels)), channels)

    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread`, blocking."""
        call(self.adelete_thread, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`adelete_for_runs`, blocking."""
        call(self.adelete_for_runs, run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`acopy_thread`, blocking."""
        call(self.acopy_thread, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """`aprune`, blocking."""

        async def prune() -> None:
            await self.aprune(thread_ids, strategy=strategy)

        call(prune)

    # ------------------------------------------------------------------------------------------------ inside

    def _coder(self, place: Place) -> Coder:
        return Coder(self.serde, self._access.key(place.session_id), self._thread)

    async def _reading(self, place: Place, work: Work[T]) -> T:
        lists = self._coder(place).lists

        async def read(session: Session, alone: bool) -> T:
            return await work(Thread(session, self._thread, lists, alone=alone))

        return await self._access.read(place.session_id, read)

    async def _writing(self, place: Place, work: Work[None]) -> None:
        lists = self._coder(place).lists

        async def write(session: Session, alone: bool) -> None:
            await work(Thread(session, self._thread, lists, alone=alone, counted=self._counted))

        await self._access.write(place.session_id, write)

    async def _changing(self, thread_id: str, change: Callable[[Session], Awaitable[None]]) -> None:
        """Change the state of LangGraph in a session as a whole, if there is such a session."""
        joined = self._access.joined(str(thread_id))
        if joined is not None:
            await change(joined)
            return
        with suppress(SessionNotFoundError):
            async with self._access.manager.open(str(thread_id), create=False) as session:
                await change(session)

    def _found(self, place: Place, stored: Stored | None) -> CheckpointTuple | None:
        if stored is None:
            return None
        in_turn = self._access.joined(place.session_id) is not None
        return self._coder(place).gone_on_with(place, stored, in_turn=in_turn)

    def _matching(self, listing: Listing, stored: Stored) -> CheckpointTuple | None:
        coder = self._coder(listing.place)
        metadata = coder.metadata(stored)
        return coder.decoded(listing.place, stored, metadata) if listing.takes(metadata) else None


class TurnSaver(SessionSaver):
    """The checkpointer of one run of one graph in a turn that is open."""

    def __init__(
        self, session: Session, thread: str, serde: SerializerProtocol, nodes: AbstractSet[str], *, counted: bool
    ) -> None:
        super().__init__(thread=thread, serde=serde)
        self._counted = counted
        self._access = Access(None, session)
        self._session_id = session.id
        self._nodes = nodes

    def _found(self, place: Place, stored: Stored | None) -> CheckpointTuple | None:
        found = super()._found(place, stored)
        seen = {node for node in found.checkpoint["versions_seen"] if not node.startswith("__")} if found else set()
        if not place.ns and seen and seen.isdisjoint(self._nodes):
            raise InvalidError(
                "AGENT",
                f"another graph of this name has run in session {self._session_id!r}: no two graphs of a session may "
                "have the same name. Name them: compile(name=...)",
                field="agent",
            )
        return found


def _loading(place: Place, config: RunnableConfig) -> Work[Stored | None]:
    configurable = config["configurable"]
    above = configurable.get("checkpoint_map") if "__pregel_task_id" in configurable else None

    async def load(thread: Thread) -> Stored | None:
        return await thread.load(place.ns, place.checkpoint_id, above and above.values())

    return load


def _tracing(place: Place, channels: Sequence[str]) -> Work[list[Stored]]:
    async def trace(thread: Thread) -> list[Stored]:
        return await thread.ancestry(place.ns, place.checkpoint_id, channels)

    return trace


def _putting(config: RunnableConfig, new: NewCheckpoint) -> Work[None]:
    async def put(thread: Thread) -> None:
        await thread.put(new, origin_of(config, new.parent))

    return put


def _adding(place: Place, writes: Sequence[Write], task_id: str, task_path: str) -> Work[None]:
    if place.checkpoint_id is None:
        raise InvalidError("CHECKPOINT_ID", "writes belong to a checkpoint: name it", field="checkpoint_id")
    checkpoint_id = place.checkpoint_id

    async def add(thread: Thread) -> None:
        await thread.add_writes(place.ns, checkpoint_id, task_id, task_path, writes)

    return add


def _pasting(
    copy: upkeep.Copy, entries: dict[str, Any], *, is_last: bool
) -> Callable[[Session, bool], Awaitable[None]]:
    async def paste(session: Session, _: bool) -> None:
        await upkeep.paste_entries(session, entries)
        if is_last:
            upkeep.paste_values(session, copy)

    return paste
