"""Opening a source by its kind and URI."""

from __future__ import annotations

from collections.abc import Iterable

from .source import Source, SourceError, SourceSerializer, TypeName

KINDS = ("sqlite", "postgres", "redis", "plainredis")
"""The checkpointers that can be read: langgraph-checkpoint-sqlite and so on."""


def open_source(kind: str, uri: str, *, allowed: Iterable[TypeName] = (), key_prefix: str | None = None) -> Source:
    """Open what one of LangGraph's checkpointers has stored. It blocks.

    Args:
        kind: Which checkpointer, one of `KINDS`.
        uri: The path of the file, or the URI of the server or database.
        allowed: Types, by module and name, that may be made of stored data beside LangGraph's own.
        key_prefix: On Redis, what keys begin with. None: what they do by default.

    Raises:
        SourceError: It can't be read, or the package of the checkpointer is missing.
    """
    prefix = {} if key_prefix is None else {"prefix": key_prefix}
    if prefix and kind not in ("redis", "plainredis"):
        raise SourceError("keys have a prefix on Redis only")
    try:
        match kind:
            case "sqlite":
                from .sources.sqlite import SQLiteSource

                return SQLiteSource(uri.removeprefix("sqlite://"), SourceSerializer(allowed))
            case "postgres":
                from .sources.postgres import PostgresSource

                return PostgresSource(uri, SourceSerializer(allowed))
            case "redis":
                from .sources.redis import RedisSource, StrictRedisSerializer

                return RedisSource(uri, StrictRedisSerializer(allowed), **prefix)
            case "plainredis":
                from .sources.plainredis import PlainRedisSource

                return PlainRedisSource(uri, SourceSerializer(allowed), **prefix)
    except ImportError as error:
        raise SourceError(
            f"langgraph-checkpoint-{kind} is missing: pip install 'agent-sessions-runtime[import-{kind}]'"
        ) from error
    raise SourceError(f"there is no source {kind!r}; there are {', '.join(KINDS)}")
