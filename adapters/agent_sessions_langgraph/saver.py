"""`SessionSaver`: LangGraph's checkpointer, whose threads are sessions."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from agent_sessions import Session, SessionManager, SyncSession, SyncSessionManager
from agent_sessions.background import call
from agent_sessions.errors import InvalidError, SessionConflictError, SessionNotFoundError

from .serde import StrictSerializer
from .thread import NewCheckpoint, Origin, Stored, Thread, Write, clear

T = TypeVar("T")
Work = Callable[[Thread], Awaitable[T]]

_PAST = "__agent_sessions_past"
"""In a `configurable`: the checkpoint that the caller named, and that the thread had moved on from. LangGraph carries
it from `get_tuple` to `put`. Keys that begin so are kept out of metadata."""

_READ_ATTEMPTS = 5
_PAGE = 20


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
        self._manager = manager
        self._thread = thread

    @asynccontextmanager
    async def turn(self, thread_id: str, *, wait_s: float | None = None) -> AsyncIterator[Session]:
        """One turn on the thread's session: runs inside it are stored together at its end, and other turns wait.

        Arguments and errors as of `SessionManager.open`.
        """
        async with self._managing().open(str(thread_id), wait_s=wait_s) as session:
            yield session

    @contextmanager
    def turn_sync(self, thread_id: str, *, wait_s: float | None = None) -> Iterator[SyncSession]:
        """`turn`, blocking."""
        with SyncSessionManager(manager=self._managing()).open(str(thread_id), wait_s=wait_s) as session:
            yield session

    def get_next_version(self, current: str | int | float | None, channel: None) -> str:
        """A version that follows, as `InMemorySaver` makes them."""
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{random.random():016}"

    # ------------------------------------------------------------------------------------------------ async

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the latest one of its thread."""
        place = _Place.of(config)
        stored = await self._reading(place, _loading(place, config))
        return None if stored is None else self._decoded(place, stored)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, the latest first; those whose metadata has all that the filter says."""
        listing = _Listing.of(config, filter, before, limit)
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
        place = _Place.of(config)
        await self._writing(place, _putting(config, self._encoded(place, config, checkpoint, metadata, new_versions)))
        return _config(place.session_id, place.ns, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task has written to a checkpoint."""
        place = _Place.of(config)
        await self._writing(place, _adding(place, self._encoded_writes(writes, task_id, task_path), task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all state of LangGraph in the session, of all graphs. The session itself stays."""
        try:
            async with self._managing().open(str(thread_id), create=False) as session:
                await clear(session)
        except SessionNotFoundError:
            return

    # ------------------------------------------------------------------------------------------------ sync

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`aget_tuple`, blocking."""
        place = _Place.of(config)
        stored = call(self._reading, place, _loading(place, config))
        return None if stored is None else self._decoded(place, stored)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """`alist`, blocking."""
        listing = _Listing.of(config, filter, before, limit)
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
        place = _Place.of(config)
        new = self._encoded(place, config, checkpoint, metadata, new_versions)
        call(self._writing, place, _putting(config, new))
        return _config(place.session_id, place.ns, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`aput_writes`, blocking."""
        place = _Place.of(config)
        encoded = self._encoded_writes(writes, task_id, task_path)
        call(self._writing, place, _adding(place, encoded, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread`, blocking."""
        call(self.adelete_thread, thread_id)

    # ------------------------------------------------------------------------------------------------ sessions

    def _managing(self) -> SessionManager:
        if self._manager is None:
            self._manager = SessionManager.from_env()
        return self._manager

    def _joined(self, session_id: str) -> Session | None:
        """The session, if this is inside a turn on it."""
        return self._managing().joined(session_id)

    async def _reading(self, place: _Place, work: Work[T]) -> T:
        session = self._joined(place.session_id)
        if session is not None:
            return await work(Thread(session, self._thread))
        for _ in range(_READ_ATTEMPTS):
            try:
                async with self._managing().read(place.session_id) as snapshot:
                    return await work(Thread(snapshot, self._thread, alone=True))
            except SessionConflictError:
                continue  # another run has stored something between two reads
        async with self._managing().open(place.session_id) as session:
            return await work(Thread(session, self._thread, alone=True))

    async def _writing(self, place: _Place, work: Work[None]) -> None:
        session = self._joined(place.session_id)
        if session is not None:
            await work(Thread(session, self._thread))
            return
        async with self._managing().open(place.session_id) as session:
            await work(Thread(session, self._thread, alone=True))

    # ------------------------------------------------------------------------------------------------ bytes

    def _encoded(
        self,
        place: _Place,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> NewCheckpoint:
        values = checkpoint["channel_values"]
        bare = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        return NewCheckpoint(
            ns=place.ns,
            id=checkpoint["id"],
            parent=place.checkpoint_id,
            checkpoint=self.serde.dumps_typed(bare),
            metadata=self.serde.dumps_typed(get_checkpoint_metadata(config, metadata)),
            versions=checkpoint["channel_versions"],
            changed=new_versions.keys(),
            filled=values.keys(),
            blobs={name: self.serde.dumps_typed(values[name]) for name in new_versions if name in values},
        )

    def _encoded_writes(self, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> Sequence[Write]:
        return [
            Write(task_path, task_id, WRITES_IDX_MAP.get(channel, place), channel, self.serde.dumps_typed(value))
            for place, (channel, value) in enumerate(writes)
        ]

    def _decoded(self, place: _Place, stored: Stored, metadata: Any = None) -> CheckpointTuple:
        loads = self.serde.loads_typed
        config = _config(place.session_id, stored.ns, stored.id)
        if place.checkpoint_id is not None and not stored.is_latest:
            config["configurable"][_PAST] = stored.id
        return CheckpointTuple(
            config=config,
            checkpoint=cast(
                Checkpoint,
                {
                    **loads(stored.checkpoint),
                    "channel_values": {channel: loads(pair) for channel, pair in stored.blobs.items()},
                },
            ),
            metadata=loads(stored.metadata) if metadata is None else metadata,
            parent_config=_config(place.session_id, stored.ns, stored.parent) if stored.parent else None,
            pending_writes=[(write.task_id, write.channel, loads(write.value)) for write in stored.writes],
        )

    def _matching(self, listing: _Listing, stored: Stored) -> CheckpointTuple | None:
        metadata = self.serde.loads_typed(stored.metadata)
        return self._decoded(listing.place, stored, metadata) if listing.takes(metadata) else None


class TurnSaver(SessionSaver):
    """The checkpointer of one run of one graph in a turn that is open."""

    def __init__(self, session: Session, thread: str, serde: SerializerProtocol, nodes: AbstractSet[str]) -> None:
        super().__init__(thread=thread, serde=serde)
        self._session = session
        self._nodes = nodes

    def _joined(self, session_id: str) -> Session:
        return self._session

    def _decoded(self, place: _Place, stored: Stored, metadata: Any = None) -> CheckpointTuple:
        found = super()._decoded(place, stored, metadata)
        seen = {node for node in found.checkpoint["versions_seen"] if not node.startswith("__")}
        if not stored.ns and seen and seen.isdisjoint(self._nodes):
            raise InvalidError(
                "AGENT",
                f"another graph of this name has run in session {self._session.id!r}: no two graphs of a session may "
                "have the same name. Name them: compile(name=...)",
                field="agent",
            )
        return found


class _Place(NamedTuple):
    """What a config names."""

    session_id: str
    ns: str
    checkpoint_id: str | None

    @classmethod
    def of(cls, config: RunnableConfig) -> _Place:
        configurable = config.get("configurable") or {}
        thread_id = configurable.get("thread_id")
        if thread_id is None:
            raise InvalidError(
                "THREAD_ID", 'the config needs a thread id: {"configurable": {"thread_id": ...}}', field="thread_id"
            )
        return cls(str(thread_id), configurable.get("checkpoint_ns") or "", configurable.get("checkpoint_id") or None)


class _Listing:
    """Goes through the checkpoints of a thread, page by page."""

    def __init__(self, place: _Place, ns: str | None, filter: dict[str, Any], before: str | None, left: float) -> None:
        self.place = place
        self.goes_on = False
        self._given = ns
        self._filter = filter
        self._from = before
        self._left = left
        self._ns = ""
        self._before: str | None = None

    @classmethod
    def of(
        cls,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> _Listing:
        if config is None:
            raise InvalidError("THREAD_ID", "checkpoints are listed thread by thread: name one", field="config")
        place, ns = _Place.of(config), config["configurable"].get("checkpoint_ns")
        first = _Place.of({"configurable": {"thread_id": "", **before["configurable"]}}) if before else None
        left = float("inf") if limit is None else limit
        return cls(place, ns, filter or {}, first.checkpoint_id if first else None, left)

    async def namespaces(self, thread: Thread) -> Sequence[str]:
        return await thread.namespaces() if self._given is None else [self._given]

    def start(self, ns: str) -> None:
        self._ns, self._before, self.goes_on = ns, self._from, self._left > 0

    async def page(self, thread: Thread) -> Sequence[Stored]:
        if self.place.checkpoint_id is not None:
            self.goes_on = False
            found = await thread.load(self._ns, self.place.checkpoint_id)
            return [] if found is None or (self._before is not None and found.id >= self._before) else [found]
        size = _PAGE if self._filter else int(min(self._left, _PAGE))
        page = await thread.page(self._ns, self._before, size)
        if len(page) < size:
            self.goes_on = False
        else:
            self._before = page[-1].id
        return page

    def takes(self, metadata: dict[str, Any]) -> bool:
        """Whether a checkpoint is one of those asked for; it is counted then."""
        if self._left <= 0 or any(metadata.get(name) != value for name, value in self._filter.items()):
            return False
        self._left -= 1
        self.goes_on = self.goes_on and self._left > 0
        return True


def _loading(place: _Place, config: RunnableConfig) -> Work[Stored | None]:
    configurable = config["configurable"]
    above = configurable.get("checkpoint_map") if "__pregel_task_id" in configurable else None

    async def load(thread: Thread) -> Stored | None:
        return await thread.load(place.ns, place.checkpoint_id, above and above.values())

    return load


def _putting(config: RunnableConfig, new: NewCheckpoint) -> Work[None]:
    async def put(thread: Thread) -> None:
        await thread.put(new, _origin(config, new.parent))

    return put


def _origin(config: RunnableConfig, parent: str | None) -> Origin:
    if "recursion_limit" not in config:  # not LangGraph's own: those are complete
        return "copy"
    configurable = config["configurable"]
    is_replayed = configurable.get("__pregel_replay_state") is not None
    is_named = parent is not None and configurable.get(_PAST) == parent
    return "fork" if is_replayed or is_named else "next"


def _adding(place: _Place, writes: Sequence[Write], task_id: str, task_path: str) -> Work[None]:
    if place.checkpoint_id is None:
        raise InvalidError("CHECKPOINT_ID", "writes belong to a checkpoint: name it", field="checkpoint_id")
    checkpoint_id = place.checkpoint_id

    async def add(thread: Thread) -> None:
        await thread.add_writes(place.ns, checkpoint_id, task_id, task_path, writes)

    return add


def _config(thread_id: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}
