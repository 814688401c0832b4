"""Between what LangGraph hands over and what a thread stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from agent_sessions.stores.base import Key

from .chunks import ListName
from .keys import base_of
from .lists import Lists
from .messages import count_in
from .places import Place
from .thread import NewCheckpoint, Origin, Stored, Write

PAST = "__agent_sessions_past"
"""In a `configurable`: the checkpoint that the caller named, and that the thread had moved on from. LangGraph carries
it from `get_tuple` to `put`. Keys that begin so are kept out of metadata."""


class Coder:
    """Encodes and decodes the checkpoints of one thread of a session.

    Args:
        serde: The serializer.
        session: The session.
        thread: The name of the thread in it.
    """

    def __init__(self, serde: SerializerProtocol, session: Key, thread: str) -> None:
        self.lists = Lists(serde)
        self._serde = serde
        self._session = session
        self._thread = thread

    def encoded(
        self,
        place: Place,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> NewCheckpoint:
        """A checkpoint as it is now, with the values of the channels whose version is new."""
        dumps, values = self._serde.dumps_typed, checkpoint["channel_values"]
        bare = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        kept = get_checkpoint_metadata(config, metadata)
        run_id = kept.get("run_id")
        new = {name: values[name] for name in new_versions if name in values}
        lists = {name: value for name, value in new.items() if type(value) is list}
        return NewCheckpoint(
            ns=place.ns,
            id=checkpoint["id"],
            parent=place.checkpoint_id,
            checkpoint=dumps(bare),
            metadata=dumps(kept),
            versions=checkpoint["channel_versions"],
            changed=new_versions.keys(),
            filled=values.keys(),
            blobs={name: dumps(value) for name, value in new.items() if name not in lists},
            lists={name: self.lists.guessed(self._list(place.ns, name), value) for name, value in lists.items()},
            run_id=None if run_id is None else str(run_id),
            messages=count_in(checkpoint),
        )

    def encoded_writes(self, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> Sequence[Write]:
        """What a task has written."""
        dumps = self._serde.dumps_typed
        return [
            Write(task_path, task_id, WRITES_IDX_MAP.get(channel, place), channel, dumps(value))
            for place, (channel, value) in enumerate(writes)
        ]

    def gone_on_with(self, place: Place, stored: Stored, *, in_turn: bool) -> CheckpointTuple:
        """The checkpoint that a run begins with. In a turn, which the session has to itself, it shares list items."""
        for channel, pieces in stored.lists.items():
            self.lists.note_latest(self._list(stored.ns, channel), tuple(piece.segment for piece in pieces))
        return self.decoded(place, stored, shared=in_turn)

    def decoded(self, place: Place, stored: Stored, metadata: Any = None, *, shared: bool = False) -> CheckpointTuple:
        """A checkpoint; unless `shared`, of new objects all through."""
        loads = self._serde.loads_typed
        config = config_of(place.session_id, stored.ns, stored.id)
        if place.checkpoint_id is not None and not stored.is_latest:
            config["configurable"][PAST] = stored.id
        return CheckpointTuple(
            config=config,
            checkpoint=cast(
                Checkpoint, {**loads(stored.checkpoint), "channel_values": self._values(stored, shared=shared)}
            ),
            metadata=self.metadata(stored) if metadata is None else metadata,
            parent_config=config_of(place.session_id, stored.ns, stored.parent) if stored.parent else None,
            pending_writes=self._writes(stored),
        )

    def metadata(self, stored: Stored) -> Any:
        """The metadata of a checkpoint."""
        return self._serde.loads_typed(stored.metadata)

    def history(self, ancestry: Sequence[Stored], channels: Collection[str]) -> Mapping[str, DeltaChannelHistory]:
        """What became of delta channels, from the last stored value of each on. The ancestry begins at the nearest."""
        histories: dict[str, DeltaChannelHistory] = {}
        for channel in channels:
            writes: list[PendingWrite] = []
            history: DeltaChannelHistory = {"writes": writes}
            for stored in ancestry:
                writes[:0] = self._writes(stored, channel)
                if channel in stored.blobs or channel in stored.lists:
                    history["seed"] = self._values(stored, channel)[channel]
                    break
            histories[channel] = history
        return histories

    def _values(self, stored: Stored, channel: str | None = None, *, shared: bool = False) -> dict[str, Any]:
        values = {name: self._serde.loads_typed(pair) for name, pair in stored.blobs.items() if channel in (None, name)}
        for name, pieces in stored.lists.items():
            if channel in (None, name):
                values[name] = self.lists.decoded(pieces, shared=shared)
        return values

    def _writes(self, stored: Stored, channel: str | None = None) -> list[PendingWrite]:
        return [
            (write.task_id, write.channel, self._serde.loads_typed(write.value))
            for write in stored.writes
            if channel in (None, write.channel)
        ]

    def _list(self, ns: str, channel: str) -> ListName:
        return ListName(self._session, base_of(self._thread, ns), channel)


def origin_of(config: RunnableConfig, parent: str | None) -> Origin:
    """What a checkpoint is that is put with this config."""
    if "recursion_limit" not in config:  # not LangGraph's own: those are complete
        return "copy"
    configurable = config["configurable"]
    is_replayed = configurable.get("__pregel_replay_state") is not None
    is_named = parent is not None and configurable.get(PAST) == parent
    return "fork" if is_replayed or is_named else "next"


def config_of(thread_id: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}
