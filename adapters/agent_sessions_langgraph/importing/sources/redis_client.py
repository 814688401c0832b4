"""What both sources on Redis have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import RedisError

from ..source import Place, SourceError
from .catalogue import Catalogue

CONNECT_S = 10
ANSWER_S = 60


def client_of(uri: str) -> Redis:
    """A client; no connection is made yet."""
    try:
        return Redis.from_url(uri, socket_connect_timeout=CONNECT_S, socket_timeout=ANSWER_S)
    except ValueError:
        raise SourceError("that is no URI of a Redis server: redis://user:password@host:port/database") from None


def name_of(client: Redis, prefix: str) -> str:
    """What is read, without a user or password."""
    options = client.get_connection_kwargs()
    where = options.get("path") or f"{options.get('host')}:{options.get('port')}"
    return f"{where}/{options.get('db') or 0}, keys {prefix}:*"


@contextmanager
def redis_errors() -> Iterator[None]:
    """Errors of the server and of the way to it, as those of the source."""
    try:
        yield
    except RedisError as error:
        raise SourceError(f"the Redis server can't be read: {error}") from error


class OnRedis:
    """What both sources have in common: a server that can't tell threads in order, and a catalogue that can."""

    def __init__(self, uri: str) -> None:
        self._client = client_of(uri)
        self._catalogue = Catalogue()

    def count(self) -> int:
        return self._catalogue.count()

    def threads(self, after: str | None, limit: int) -> list[str]:
        return self._catalogue.threads(after, limit)

    def places(self, thread_id: str) -> list[Place]:
        return self._catalogue.places(thread_id)

    def close(self) -> None:
        self._catalogue.close()
        self._client.close()
