"""What the config of a call names, and going through the checkpoints of a thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig

from agent_sessions.errors import InvalidError

from .thread import Stored, Thread

_PAGE = 20


class Place(NamedTuple):
    """What a config names."""

    session_id: str
    ns: str
    checkpoint_id: str | None

    @classmethod
    def of(cls, config: RunnableConfig) -> Place:
        configurable = config.get("configurable") or {}
        thread_id = configurable.get("thread_id")
        if thread_id is None:
            raise InvalidError(
                "THREAD_ID", 'the config needs a thread id: {"configurable": {"thread_id": ...}}', field="thread_id"
            )
        return cls(str(thread_id), configurable.get("checkpoint_ns") or "", configurable.get("checkpoint_id") or None)


class Listing:
    """Goes through the checkpoints of a thread, page by page."""

    def __init__(self, place: Place, ns: str | None, filter: dict[str, Any], before: str | None, left: float) -> None:
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
    ) -> Listing:
        place, ns = Place("", "", None), None
        if config is not None:
            place, ns = Place.of(config), config["configurable"].get("checkpoint_ns")
        first = Place.of({"configurable": {"thread_id": "", **before["configurable"]}}) if before else None
        left = float("inf") if limit is None else limit
        return cls(place, ns, filter or {}, first.checkpoint_id if first else None, left)

    def enter(self, session_id: str) -> None:
        """Go on with this session."""
        self.place = self.place._replace(session_id=session_id)

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
