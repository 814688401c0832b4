"""What threads are read from: one of LangGraph's own checkpointers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointMetadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from msgspec import Struct

from agent_sessions.errors import SerializationError

from ..coding import config_of
from ..serde import StrictSerializer

TypeName = tuple[str, ...]
"""A module and the name of a type in it."""

_FORMAT_NAME = re.compile(r"[\w+.-]{1,40}")
_FORMATS = frozenset({"null", "bytes", "bytearray", "json", "msgpack"})


class SourceError(Exception):
    """The source can't be read: it is not there, or is away, or holds nothing of LangGraph."""


class Place(NamedTuple):
    """Where a checkpoint is in its thread."""

    ns: str
    id: str


class Write(NamedTuple):
    """A pending write."""

    task_path: str
    task_id: str
    channel: str
    value: Any


class Original(Struct, frozen=True):
    """A checkpoint as its source gives it."""

    place: Place
    parent: str | None
    checkpoint: Checkpoint
    metadata: CheckpointMetadata
    writes: Sequence[Write]
    """In the order in which they are applied."""


class Source(Protocol):
    """Threads of another checkpointer. Its methods block, and are called from one thread at a time.

    They raise `SourceError` if the source is away, and `SerializationError` if a checkpoint can't be decoded.
    """

    name: str
    """What it is, for a person, and to tell it from others. No user or password."""

    def count(self) -> int:
        """How many threads there are."""

    def threads(self, after: str | None, limit: int) -> list[str]:
        """Ids of threads, in the source's own order, from the first one after `after`."""

    def places(self, thread_id: str) -> list[Place]:
        """Where the checkpoints of a thread are: namespace by namespace, in each by rising id."""

    def read(self, thread_id: str, place: Place) -> Original | None:
        """A checkpoint. None: it is gone."""

    def close(self) -> None:
        """Close what was opened for reading."""


class SourceSerializer(StrictSerializer):
    """Decodes what other checkpointers have stored, and makes objects of the types allowed, of no others.

    Their older versions stored JSON, of which LangGraph hands out what it may not construct as it is; this raises
    `SerializationError`.
    """

    def __init__(self, allowed: Iterable[TypeName] = ()) -> None:
        names = frozenset(allowed)
        super().__init__()
        JsonPlusSerializer.__init__(
            self,
            allowed_json_modules={(*module.split("."), name) for module, name in names} or None,
            allowed_msgpack_modules=names or None,
        )

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] not in _FORMATS:
            name = repr(data[0]) if _FORMAT_NAME.fullmatch(str(data[0])) else "that is unknown"
            raise SerializationError(f"a value is in a format {name}, which only the serializer that wrote it reads")
        return super().loads_typed(data)

    def _reviver(self, value: dict[str, Any]) -> Any:
        revived = super()._reviver(value)
        if isinstance(revived, dict) and (name := constructor_of(revived)) is not None:
            raise blocked(name)
        return revived


def constructor_of(value: Mapping[str, Any]) -> str | None:
    """What LangGraph's JSON asks to be constructed in the place of this object, if it does."""
    if value.get("lc") != 2 or value.get("type") != "constructor" or not isinstance(value.get("id"), list):
        return None
    return ".".join(map(str, value["id"]))


def blocked(name: str) -> SerializationError:
    """The error of a type that is not allowed."""
    return SerializationError(f"a checkpoint holds a {name}, which may not be constructed from stored data")


def read_through(
    saver: BaseCheckpointSaver[Any], thread_id: str, place: Place, read_paths: Callable[[str, Place], Mapping[str, str]]
) -> Original | None:
    """A checkpoint from the checkpointer itself, and, by the ids of tasks, their paths, which that does not tell."""
    found = saver.get_tuple(config_of(thread_id, place.ns, place.id))
    if found is None:
        return None
    paths = read_paths(thread_id, place) if found.pending_writes else {}
    writes = [
        Write(paths.get(task_id, ""), task_id, channel, value) for task_id, channel, value in found.pending_writes or ()
    ]
    parent = (found.parent_config or RunnableConfig()).get("configurable", {}).get("checkpoint_id")
    return Original(
        place=place,
        parent=parent or None,
        checkpoint=_with_text_versions(found.checkpoint),
        metadata=found.metadata,
        writes=sorted(writes, key=_order),
    )


def _order(write: Write) -> tuple[str, str, int]:
    """Special writes have places of their own, below all others, which are in their order already."""
    return writes_sort_key(write.task_path, write.task_id, WRITES_IDX_MAP.get(write.channel, 0))


def _with_text_versions(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with versions that can be compared with those of `SessionSaver`.

    Some checkpointers count in integers. A graph that went on would compare a text with one, and fail.
    """
    versions = checkpoint["channel_versions"]
    if not any(isinstance(version, int) for version in versions.values()):
        return checkpoint
    seen = {node: _as_text(own) for node, own in checkpoint["versions_seen"].items()}
    return {**checkpoint, "channel_versions": _as_text(versions), "versions_seen": seen}


def _as_text(versions: Mapping[str, Any]) -> dict[str, Any]:
    return {
        channel: f"{version:032}.{0:016}" if isinstance(version, int) else version
        for channel, version in versions.items()
    }
