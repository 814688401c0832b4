"""Threads on a Redis of langgraph-checkpoint-redis, which stores JSON documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.redis import RedisSaver
from langgraph.checkpoint.redis.jsonplus_redis import JsonPlusRedisSerializer
from langgraph.checkpoint.redis.key_registry import SyncCheckpointKeyRegistry
from langgraph.checkpoint.redis.util import from_storage_safe_id, from_storage_safe_str
from msgspec import structs

from ..source import Original, Place, SourceError, SourceSerializer, TypeName, blocked, read_through
from .redis_client import OnRedis, name_of, redis_errors

DEFAULT_PREFIX = "checkpoint"

_KEYS_AT_ONCE = 500


class StrictRedisSerializer(JsonPlusRedisSerializer, SourceSerializer):
    """Decodes what that checkpointer stores, and imports nothing and makes no object of types that are not allowed.

    Its own serializer does both for any dataclass that a document names. What it can't make it hands out as it is, so
    this notes what that was.
    """

    def __init__(self, allowed: Iterable[TypeName] = ()) -> None:
        names = frozenset(allowed)
        SourceSerializer.__init__(self, names)
        self._allowed = {(*module.split("."), name) for module, name in names}
        self.blocked: list[str] = []

    def _constructor_class(self, obj: dict[str, Any]) -> type[Any]:
        if tuple(obj.get("id") or ()) not in self._allowed:
            raise ValueError("not a type that is allowed")
        return super()._constructor_class(obj)

    def _reviver(self, value: dict[str, Any]) -> Any:
        try:
            return super()._reviver(value)
        except Exception:
            self.blocked.append(".".join(map(str, value.get("id") or ())))
            raise


class RedisSource(OnRedis):
    """Reads the documents of one prefix. Their index is made if it is missing; nothing else is written.

    Args:
        uri: The server.
        serde: What decodes the values.
        prefix: What the keys of checkpoints begin with. Those of writes begin with it and `_write`.
    """

    def __init__(self, uri: str, serde: StrictRedisSerializer, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__(uri)
        self.name = f"redis {name_of(self._client, prefix)}"
        self._serde = serde
        with redis_errors():
            for keys in _some(self._client.scan_iter(f"{_escaped(prefix)}:*", count=1000, _type="ReJSON-RL")):
                self._catalogue.add(self._ids(keys))
            if not self.count():
                raise SourceError(
                    "there are no checkpoints of langgraph-checkpoint-redis (those of langgraph-checkpoint-plainredis "
                    "are another kind: plainredis)"
                )
            self._saver = RedisSaver(
                redis_client=self._client, checkpoint_prefix=prefix, checkpoint_write_prefix=f"{prefix}_write"
            )
            self._saver.serde = serde
            self._saver.setup()
        self._written = SyncCheckpointKeyRegistry(self._client)

    def read(self, thread_id: str, place: Place) -> Original | None:
        self._serde.blocked.clear()
        with redis_errors():
            original = read_through(self._saver, thread_id, place, self._paths)
        if self._serde.blocked:
            raise blocked(self._serde.blocked[0])
        return None if original is None else structs.replace(original, checkpoint=_bare(original.checkpoint))

    def _ids(self, keys: list[Any]) -> list[tuple[str, str, str]]:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.json().get(key, "thread_id", "checkpoint_ns", "checkpoint_id")
        return [
            (
                from_storage_safe_id(found["thread_id"]),
                from_storage_safe_str(found["checkpoint_ns"]),
                from_storage_safe_id(found["checkpoint_id"]),
            )
            for found in pipeline.execute()
            if found is not None
        ]

    def _paths(self, thread_id: str, place: Place) -> dict[str, str]:
        pipeline = self._client.pipeline(transaction=False)
        for key in self._written.get_write_keys(thread_id, *place):
            pipeline.json().get(key, "task_id", "task_path")
        return {found["task_id"]: found.get("task_path", "") for found in pipeline.execute() if found is not None}


def _bare(checkpoint: Checkpoint) -> Checkpoint:
    """Without what that checkpointer adds of its own; LangGraph asks for `pending_sends` in old checkpoints only."""
    added = {"type"} if checkpoint["v"] < 4 else {"type", "pending_sends"}
    return cast(Checkpoint, {name: value for name, value in checkpoint.items() if name not in added})


def _escaped(prefix: str) -> str:
    """A prefix in a pattern of keys."""
    return "".join(f"\\{one}" if one in "*?[]\\^" else one for one in prefix)


def _some(keys: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(islice(keys, _KEYS_AT_ONCE)):
        yield some
