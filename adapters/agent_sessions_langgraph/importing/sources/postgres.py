"""Threads in a database of langgraph-checkpoint-postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg.rows import DictRow, dict_row

from ..source import Original, Place, SourceError, read_through

CONNECT_S = 10


class PostgresSource:
    """Reads a database, and writes nothing to it.

    Args:
        uri: The database, as libpq takes it.
        serde: What decodes its values.
    """

    def __init__(self, uri: str, serde: SerializerProtocol) -> None:
        with _errors(), _uri_errors():
            self._connection = psycopg.Connection[DictRow].connect(
                uri, autocommit=True, prepare_threshold=0, row_factory=dict_row, connect_timeout=CONNECT_S
            )
        info = self._connection.info
        self.name = f"postgres {info.host}:{info.port}/{info.dbname}"
        self._saver = PostgresSaver(self._connection, serde=serde)

    def count(self) -> int:
        return int(self._rows("SELECT count(DISTINCT thread_id) AS threads FROM checkpoints")[0]["threads"])

    def threads(self, after: str | None, limit: int) -> list[str]:
        found = self._rows(
            "SELECT DISTINCT thread_id FROM checkpoints WHERE %s::text IS NULL OR thread_id > %s "
            "ORDER BY thread_id LIMIT %s",
            after,
            after,
            limit,
        )
        return [row["thread_id"] for row in found]

    def places(self, thread_id: str) -> list[Place]:
        found = self._rows(
            "SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE thread_id = %s "
            'ORDER BY checkpoint_ns COLLATE "C", checkpoint_id COLLATE "C"',
            thread_id,
        )
        return [Place(row["checkpoint_ns"], row["checkpoint_id"]) for row in found]

    def read(self, thread_id: str, place: Place) -> Original | None:
        with _errors():
            return read_through(self._saver, thread_id, place, self._paths)

    def close(self) -> None:
        self._connection.close()

    def _paths(self, thread_id: str, place: Place) -> dict[str, str]:
        found = self._rows(
            "SELECT DISTINCT task_id, task_path FROM checkpoint_writes "
            "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s",
            thread_id,
            *place,
        )
        return {row["task_id"]: row["task_path"] for row in found}

    def _rows(self, statement: str, *values: Any) -> list[DictRow]:
        with _errors():
            return self._connection.execute(statement, values).fetchall()


@contextmanager
def _uri_errors() -> Iterator[None]:
    """What libpq says of a URI that it can't take apart shows it, password and all."""
    try:
        yield
    except psycopg.ProgrammingError:
        raise SourceError("that is no URI of a Postgres database: postgresql://user:password@host/database") from None


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise SourceError(
            "the database holds no checkpoints of LangGraph, or those of an older version of its checkpointer: call "
            "`PostgresSaver.setup()` of the current one on it"
        ) from error
    except psycopg.Error as error:
        raise SourceError(f"the Postgres database can't be read: {str(error).strip()}") from error
