"""`agent-sessions langgraph`: bring the threads of LangGraph's own checkpointers."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from agent_sessions import SessionError, SessionManager, Settings
from agent_sessions.errors import InvalidError, StoreUnavailableError
from agent_sessions.identifiers import DEFAULT_TENANT
from agent_sessions.stores import open_store

if TYPE_CHECKING:
    from agent_sessions_langgraph.importing import Progress

LINE_EVERY_S = 5.0
"""How often there is a line of progress where there is no terminal."""

app = typer.Typer(no_args_is_help=True, help="Bring the threads of LangGraph's own checkpointers.")


class Kind(StrEnum):
    """The checkpointers that can be read."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"
    REDIS = "redis"
    PLAINREDIS = "plainredis"


@app.callback()
def _options() -> None:
    """Keep `import` a command of its own, though it is the only one."""


@app.command("import")
def import_command(
    uri: Annotated[
        str,
        typer.Argument(
            envvar="LANGGRAPH_IMPORT_URI",
            show_envvar=True,
            help="The path of the SQLite file, or the URI of the database or server.",
        ),
    ],
    kind: Annotated[Kind, typer.Option("--from", help="The checkpointer: langgraph-checkpoint-...")],
    tenant: Annotated[str, typer.Option(help="The tenant whose sessions the threads become.")] = DEFAULT_TENANT,
    graph: Annotated[
        str, typer.Option(help="The name of the graph, if Runner will run it. Without: for SessionSaver() alone.")
    ] = "",
    thread: Annotated[list[str] | None, typer.Option(help="Only this thread. May be given several times.")] = None,
    thread_prefix: Annotated[str, typer.Option(help="Only threads whose ids begin so.")] = "",
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A type of your own in the state of graphs, as module:Name. May be given several times."),
    ] = None,
    key_prefix: Annotated[
        str | None, typer.Option(help="What keys on Redis begin with, if not as by default.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and compare everything, and store nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace checkpoints that are there already and differ.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, not where an earlier run stopped.")] = False,
) -> None:
    """Copy threads with all their checkpoints into the store that AK_SESSION__TYPE names, and read each one back.

    Nothing is changed at the source. What is there already, and the same, is skipped. It can be stopped at any time,
    and goes on where it was. Exit code 1: something was not copied.
    """

    async def run() -> Progress:
        from agent_sessions_langgraph import SessionSaver, importing

        allowed = [_type_name(one) for one in allow or ()]
        settings = _checked(Settings.load())
        async with AsyncExitStack() as opened:
            store = open_store(settings)
            opened.push_async_callback(store.aclose)
            source = await asyncio.to_thread(
                importing.open_source, kind.value, uri, allowed=allowed, key_prefix=key_prefix
            )
            opened.callback(source.close)
            manager = SessionManager(store, settings=settings, tenant_id=tenant)
            saver = SessionSaver(manager, thread=graph).with_allowlist(allowed)
            assert isinstance(saver, SessionSaver)
            with _Report(settings, source.name, dry_run=dry_run) as report:
                return await importing.import_threads(
                    source,
                    saver,
                    only=thread or (),
                    prefix=thread_prefix,
                    dry_run=dry_run,
                    overwrite=overwrite,
                    restart=restart,
                    report=report,
                )

    raise typer.Exit(_exit_code(run))


def _exit_code(run: Callable[[], Coroutine[Any, Any, Progress]]) -> int:
    """Run it to its end, or say what has come in between."""
    try:
        from agent_sessions_langgraph.importing import SourceError
    except ModuleNotFoundError as error:
        print(f"The package {error.name} is missing. pip install 'agent-sessions-runtime[langgraph]'", file=sys.stderr)
        return 1
    try:
        with _quiet():
            return 1 if asyncio.run(run()).failed else 0
    except KeyboardInterrupt:
        reason = "Stopped. Run it again, and it goes on from there."
    except StoreUnavailableError as error:
        reason = f"Stopped: {error}. Run it again, and it goes on from there."
    except (SourceError, SessionError) as error:
        reason = str(error)
    print(reason, file=sys.stderr)
    return 1


@contextmanager
def _quiet() -> Iterator[None]:
    """What LangGraph logs of types is said of their threads."""
    logger = logging.getLogger("langgraph")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _type_name(text: str) -> tuple[str, str]:
    module, _, name = text.partition(":")
    if not (module and name):
        raise InvalidError("TYPE", f"--allow {text}: a type is named as module:Name", field="allow")
    return module, name


def _checked(settings: Settings) -> Settings:
    if settings.type == "in_memory":
        message = "what is imported into memory is gone at the end: name the store that shall hold the sessions"
        raise InvalidError("SETTING", message, field="AK_SESSION__TYPE")
    return settings


class _Report:
    """Says how far an import has come, and what has become of it."""

    def __init__(self, settings: Settings, source: str, *, dry_run: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True, markup=False)
        self._settings = settings
        self._dry_run = dry_run
        self._status: Status = self._console.status("")  # shows nothing where there is no terminal
        self._line_due = time.monotonic() + LINE_EVERY_S
        self._last: Progress | None = None
        doing = f"Comparing {source} with" if dry_run else f"Importing {source} into"
        self._console.print(f"{doing} {settings.type}.")

    def __enter__(self) -> _Report:
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._status.stop()
        if kind is None and self._last is not None:
            self._finish(self._last)

    def __call__(self, progress: Progress) -> None:
        """Take note of a step."""
        self._last = progress
        for problem in progress.problems:
            self._console.print(f"thread {problem.thread_id!r}: {_printable(problem.what)}")
        self._status.update(self._counts(progress))
        if not self._console.is_terminal and time.monotonic() >= self._line_due:
            self._console.print(self._counts(progress))
            self._line_due = time.monotonic() + LINE_EVERY_S

    def _finish(self, progress: Progress) -> None:
        done = "Nothing was stored" if self._dry_run else "Done"
        self._console.print(f"{done}: {self._counts(progress)}.")
        if progress.earlier:
            self._console.print(
                f"Of these, {progress.earlier:,} threads are of an earlier run, which was broken off; they were not "
                "looked at again. --restart looks at all of them."
            )
        if progress.failed:
            self._console.print(
                "The threads named above were not, or not wholly, copied. Allow types of your own: --allow module:Name."
            )
        ttl = self._settings.session_ttl
        if ttl is not None and progress.checkpoints.imported and not self._dry_run:
            self._console.print(f"Sessions are kept for {_in_words(ttl)} after their last activity: AK_SESSION__TTL.")

    def _counts(self, progress: Progress) -> str:
        found, would = progress.checkpoints, "would be " if self._dry_run else ""
        total = f" of {progress.total:,}" if progress.total else ""
        text = f"{progress.threads:,}{total} threads, {found.seen:,} checkpoints: "
        text += f"{found.imported:,} {would}imported, {found.same:,} there already"
        text += f", {found.replaced:,} {would}overwritten" if found.replaced else ""
        text += f", {found.refused:,} left out" if found.refused else ""
        return text + (f"; {progress.failed:,} threads failed" if progress.failed else "")


def _printable(text: str) -> str:
    """Without what moves a terminal's cursor: names of types come from stored data."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _in_words(time: timedelta) -> str:
    hours = time / timedelta(hours=1)
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"
