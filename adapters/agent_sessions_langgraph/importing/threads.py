"""Copying all threads of a source, or some of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field

from agent_sessions.errors import SessionError, StoreUnavailableError

from ..saver import SessionSaver
from ..store import AgentStore
from .source import Source, SourceError
from .target import Target
from .thread import Counts, NotTheSameError, ThreadCopy

PAGE_THREADS = 50
"""After so many threads it is noted how far the import has come."""
AT_ONCE = 4
"""So many threads are copied at once."""

_NOTES = ("agent-sessions", "langgraph-imports")
_NOTES_MINUTES = 30 * 24 * 60


class Problem(NamedTuple):
    """A thread that was not, or not wholly, copied."""

    thread_id: str
    what: str


class Progress(Struct):
    """How far an import has come."""

    total: int = 0
    """Threads to be copied, as far as that is known; 0 if it is not."""
    threads: int = 0
    """Threads that are done with, those with problems too."""
    failed: int = 0
    """Threads with problems."""
    checkpoints: Counts = field(default_factory=Counts)
    earlier: int = 0
    """Of the threads, those of an import that was broken off, which are not looked at again."""
    problems: list[Problem] = field(default_factory=list)
    """Those since the last report."""


async def import_threads(
    source: Source,
    saver: SessionSaver,
    *,
    only: Collection[str] = (),
    prefix: str = "",
    dry_run: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Copy threads with all their checkpoints, metadata and pending writes, and read each one back.

    What is there already, and the same, is left as it is, also if the thread has gone on here since. Of a thread that
    differs nothing more is stored. Each step stores some checkpoints whole or not at all, so an import can be broken
    off at any time; the next one with the same arguments goes on about where it was.

    Args:
        source: Where they are. No graph should run on it meanwhile.
        saver: Where they go: the checkpointer that the graphs will use.
        only: The threads. None named: all of them.
        prefix: What the ids of threads begin with.
        dry_run: Compare, and store nothing.
        overwrite: Replace checkpoints that differ.
        restart: Look at all threads again, also if an import was broken off.
        report: Called at every step with how far it has come; problems are reported once.

    Returns:
        What has become of it.

    Raises:
        SourceError: The source is away.
        StoreUnavailableError: The store is away.
    """
    run = _Run(source, saver, Target(saver, dry_run=dry_run, overwrite=overwrite), sorted(only), prefix, report)
    with run.executor:
        if not (restart or dry_run):
            await run.resume()
        await run.to_the_end()
    return run.progress


class _Run:
    def __init__(
        self,
        source: Source,
        saver: SessionSaver,
        target: Target,
        only: list[str],
        prefix: str,
        report: Callable[[Progress], None],
    ) -> None:
        self.progress = Progress()
        self.executor = ThreadPoolExecutor(1, "agent-sessions-import")
        self._source = source
        self._target = target
        self._only = only
        self._prefix = prefix
        self._report = report
        self._after: str | None = None
        self._notes = AgentStore(target.manager)
        named = msgspec.json.encode([source.name, saver._thread, only, prefix, target.overwrite])
        self._name = blake2b(named, digest_size=16).hexdigest()

    async def resume(self) -> None:
        """Go on where the same import was broken off."""
        note = await self._notes.aget(_NOTES, self._name)
        if note is not None:
            self._after = note.value["after"]
            self.progress = msgspec.convert(note.value["progress"], Progress)
            self.progress.earlier = self.progress.threads

    async def to_the_end(self) -> None:
        """Copy all that are left."""
        if not self._prefix:
            self.progress.total = len(self._only) or await self._blocking(self._source.count)
        while page := await self._blocking(self._page):
            await self._copy_all([thread_id for thread_id in page if thread_id.startswith(self._prefix)])
            self._after = page[-1]
            await self._note()
        if not self._target.dry_run:
            await self._notes.adelete(_NOTES, self._name)

    def _page(self) -> list[str]:
        if not self._only:
            return self._source.threads(self._after, PAGE_THREADS)
        return [thread_id for thread_id in self._only if self._after is None or thread_id > self._after][:PAGE_THREADS]

    async def _note(self) -> None:
        if not self._target.dry_run:
            note = {"after": self._after, "progress": msgspec.to_builtins(self.progress)}
            await self._notes.aput(_NOTES, self._name, note, index=False, ttl=_NOTES_MINUTES)

    async def _copy_all(self, thread_ids: list[str]) -> None:
        left = iter(thread_ids)

        async def copy_some() -> None:
            for thread_id in left:
                await self._copy(thread_id)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(copy_some())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _copy(self, thread_id: str) -> None:
        copy = ThreadCopy(self._source, self.executor, self._target, thread_id, self._count)
        try:
            found = await copy.run()
            problem = copy.refused if found else "there is no such thread in the source"
        except (SourceError, StoreUnavailableError):
            raise
        except (SessionError, NotTheSameError) as error:
            problem = str(error)
        except Exception as error:  # what it says may show values
            problem = f"it can't be copied: {type(error).__name__}"
        self.progress.threads += 1
        if problem is not None:
            self.progress.failed += 1
            self.progress.problems.append(Problem(thread_id, problem))
        self._tell()

    def _count(self, counts: Counts) -> None:
        self.progress.checkpoints.add(counts)
        self._tell()

    def _tell(self) -> None:
        self._report(self.progress)
        self.progress.problems.clear()

    async def _blocking(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)
