"""Threads on a Redis of langgraph-checkpoint-plainredis."""

from __future__ import annotations

import json
from typing import cast

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph_checkpoint_plainredis import DEFAULT_PREFIX, RedisSaver

from ..source import Original, Place, SourceError, read_through
from .redis_client import OnRedis, name_of, redis_errors


class PlainRedisSource(OnRedis):
    """Reads the keys of one prefix.

    Args:
        uri: The server.
        serde: What decodes the values.
        prefix: What all keys begin with.
    """

    def __init__(self, uri: str, serde: SerializerProtocol, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__(uri)
        self.name = f"plainredis {name_of(self._client, prefix)}"
        self._saver = RedisSaver(self._client, prefix=prefix, serde=serde)
        with redis_errors():
            for index, entry in self._client.hscan_iter(f"{prefix}:threads", count=1000):
                of = json.loads(entry)
                ids = cast(list[bytes], self._client.zrange(index, 0, -1))
                self._catalogue.add((of["thread"], of["ns"], one.decode()) for one in ids)
        if not self.count():
            raise SourceError("there are no checkpoints of langgraph-checkpoint-plainredis")

    def read(self, thread_id: str, place: Place) -> Original | None:
        with redis_errors():
            return read_through(self._saver, thread_id, place, _no_paths)


def _no_paths(_: str, __: Place) -> dict[str, str]:
    """It does not keep the paths of tasks."""
    return {}
