"""Threads in a file of langgraph-checkpoint-sqlite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.sqlite import SqliteSaver

from ..source import Original, Place, SourceError, read_through


class SQLiteSource:
    """Reads a file, and writes nothing to it.

    Args:
        path: The file.
        serde: What decodes its values.
    """

    def __init__(self, path: str, serde: SerializerProtocol) -> None:
        file = Path(path).expanduser().absolute()
        self.name = f"sqlite {file}"
        if not file.is_file():
            raise SourceError(f"there is no file {path}")
        with _errors():
            # Not from the thread that opened it, but from one at a time.
            self._connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, check_same_thread=False)
            columns = {row[1] for row in self._connection.execute("PRAGMA table_info(writes)")}
        if not columns:
            self._connection.close()
            raise SourceError(f"{path} holds no checkpoints of LangGraph")
        self._saver = SqliteSaver(self._connection, serde=serde)
        self._has_task_path = "task_path" in columns
        self._saver.is_setup = self._has_task_path  # nothing is to be set up then

    def count(self) -> int:
        return int(self._rows("SELECT count(DISTINCT thread_id) FROM checkpoints")[0][0])

    def threads(self, after: str | None, limit: int) -> list[str]:
        where = "" if after is None else "WHERE thread_id > ?"
        found = self._rows(
            f"SELECT DISTINCT thread_id FROM checkpoints {where} ORDER BY thread_id LIMIT ?",
            *([] if after is None else [after]),
            limit,
        )
        return [thread_id for (thread_id,) in found]

    def places(self, thread_id: str) -> list[Place]:
        found = self._rows(
            "SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE thread_id = ? ORDER BY 1, 2", thread_id
        )
        return [Place(*row) for row in found]

    def read(self, thread_id: str, place: Place) -> Original | None:
        with _errors():
            return read_through(self._saver, thread_id, place, self._paths)

    def close(self) -> None:
        self._connection.close()

    def _paths(self, thread_id: str, place: Place) -> dict[str, str]:
        if not self._has_task_path:
            return {}
        return dict(
            self._rows(
                "SELECT task_id, task_path FROM writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                thread_id,
                *place,
            )
        )

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with _errors():
            return self._connection.execute(statement, values).fetchall()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SourceError(f"the SQLite file can't be read: {error}") from error
