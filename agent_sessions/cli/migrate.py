"""`agent-sessions migrate`: bring everything from one store to another."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from pydantic import ValidationError
from rich.console import Console
from rich.status import Status

from agent_sessions import SessionError, Settings
from agent_sessions.errors import CommitUnknownError, InvalidError, StoreUnavailableError
from agent_sessions.migration import Migration, Outcome, migrate
from agent_sessions.settings import DynamoDBSettings, RedisSettings, SQLiteSettings
from agent_sessions.stores import open_store

LINE_EVERY_S = 5.0
"""How often there is a line of progress where there is no terminal."""

_FORMS = "sqlite:///file, redis://..., rediss://..., dynamodb://table, or a YAML file of settings"
_REDIS = ("redis", "rediss", "valkey", "valkeys", "unix")
_ORDER: tuple[Outcome, ...] = ("copied", "updated", "same", "gone", "differs", "in_use", "failed")
_SAID: dict[Outcome, str] = {"same": "there already", "gone": "gone meanwhile", "in_use": "in use"}


def run_migrate(source: str, target: str, *, overwrite: bool, verify: bool, dry_run: bool) -> int:
    """Bring everything from one store to another, and return the exit code: 1 if that is not wholly done."""
    try:
        settings = store_settings(source, "--from"), store_settings(target, "--to")
        return asyncio.run(_migrate(*_checked(*settings), overwrite, verify, dry_run))
    except KeyboardInterrupt:
        reason = "interrupted"
    except (StoreUnavailableError, CommitUnknownError) as error:
        reason = str(error)
    except SessionError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Stopped: {reason}. Run it again, and it goes on from there.", file=sys.stderr)
    return 1


# --------------------------------------------------------------------------------------------------- which stores


def store_settings(given: str, option: str) -> Settings:
    """The settings of the store that is named on the command line; of the environment's, if nothing is.

    A URL stands alone, but for encryption and the times of turns, which are the environment's; a file stands alone.

    Raises:
        InvalidError: `INVALID_SETTING`: it names none.
    """
    if not given:
        return Settings.load()
    if "://" not in given:
        return Settings.load_file(Path(given))
    try:
        url = urlsplit(given)
        sections = _sections(url)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise _wrong(option, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except ValueError:  # its message may quote the URL
        raise _wrong(option, "this is no URL") from None
    if sections is None:
        raise _wrong(option, f"there is no store for {url.scheme}://; name one by {_FORMS}")
    environment = Settings.load()
    return Settings(**sections, encryption=environment.encryption, turn=environment.turn)


def _sections(url: SplitResult) -> dict[str, Any] | None:
    """The settings that a URL stands for: where the store is, and, as its options, the others of its section."""
    options = dict(parse_qsl(url.query, strict_parsing=bool(url.query)))
    if url.scheme in _REDIS:
        ours = {name: options.pop(name) for name in RedisSettings.model_fields.keys() & options.keys() - {"password"}}
        rest = url._replace(query=urlencode(options)).geturl()  # options of the client, and what is refused there
        return {"type": "redis", "redis": RedisSettings.model_validate({**ours, "url": rest})}
    if url.scheme == "dynamodb":
        return {"type": "dynamodb", "dynamodb": DynamoDBSettings.model_validate({**options, "table_name": url.netloc})}
    if url.scheme == "sqlite" and not url.netloc and len(url.path) > 1:
        path = unquote(url.path[1:])
        return {"type": "sqlite", "sqlite": SQLiteSettings.model_validate({**options, "path": path})}
    return None


def _checked(source: Settings, target: Settings) -> tuple[Settings, Settings]:
    for option, settings in (("--from", source), ("--to", target)):
        if settings.type == "in_memory":
            raise _wrong(option, f"nothing outlives this command in memory; name a store by {_FORMS}")
    if _place(source) == _place(target) != target.type:
        raise _wrong("--to", "this is the store that everything is to be copied from")
    if source.type == "sqlite" and not source.sqlite.path.is_file():
        raise _wrong("--from", f"there is no file {source.sqlite.path}")
    return source, target


def _place(settings: Settings) -> str:
    """Where a store is, as a person knows it; of one that is not ours, its type. Passwords are kept apart."""
    match settings.type:
        case "sqlite":
            return f"sqlite ({settings.sqlite.path.absolute()})"
        case "redis" | "valkey":
            return f"redis ({settings.redis.url}, keys {settings.redis.prefix}*)"
        case "dynamodb":
            where = settings.dynamodb.endpoint_url or settings.dynamodb.region or "the default region"
            return f"dynamodb (table {settings.dynamodb.table_name}, {where})"
    return settings.type


def _wrong(option: str, message: str) -> InvalidError:
    return InvalidError("SETTING", f"{option}: {message}", field=option)


# --------------------------------------------------------------------------------------------------- the work


async def _migrate(from_: Settings, to: Settings, overwrite: bool, verify: bool, dry_run: bool) -> int:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    source = open_store(from_)
    try:
        target = open_store(to)
        try:
            console.print(f"{'Comparing' if dry_run else 'Copying'} {_place(from_)} to {_place(to)}.")
            with console.status("") as status:  # shows nothing where there is no terminal
                done = await migrate(
                    source,
                    target,
                    overwrite=overwrite,
                    verify=verify,
                    dry_run=dry_run,
                    wait_s=from_.turn.wait_s,
                    report=_Reporter(console, status),
                )
        finally:
            await target.aclose()
    finally:
        await source.aclose()
    for kind, counts in sorted(done.counts.items()):
        console.print(f"  {kind}: {_counts(counts)}")
    console.print(_verdict(done))
    return 0 if done.is_complete else 1


class _Reporter:
    """Says how far it is: in place on a terminal, else in a line every few seconds; and each problem."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console = console
        self._status = status
        self._line_due = time.monotonic() + LINE_EVERY_S
        self._told = 0

    def __call__(self, progress: Migration) -> None:
        for problem in progress.problems[self._told :]:
            tenant, kind, id = problem.key
            self._console.print(f"{kind} {id!r} of tenant {tenant!r}: {problem.what}")
        self._told = len(progress.problems)
        said = f"{_counts(progress.totals)}, {progress.bytes_copied / 1e6:,.1f} MB"
        self._status.update(said)
        if not self._console.is_terminal and time.monotonic() >= self._line_due:
            self._console.print(said)
            self._line_due = time.monotonic() + LINE_EVERY_S


def _counts(counts: dict[Outcome, int]) -> str:
    return ", ".join(f"{counts[name]:,} {_SAID.get(name, name)}" for name in _ORDER if counts.get(name)) or "nothing"


def _verdict(done: Migration) -> str:
    if done.dry_run:
        return f"That is what would be done: {_counts(done.totals)}. Nothing was written."
    if done.is_complete:
        read_back = " What was copied was read back, and is the same byte for byte." if done.bytes_copied else ""
        return f"Done: {_counts(done.totals)}.{read_back}"
    remedies = [
        "what differs was left alone (--overwrite replaces it)" if done.totals["differs"] else "",
        "run this again for what was in use" if done.totals["in_use"] else "",
        "what failed is as it was" if done.totals["failed"] else "",
    ]
    return f"Not wholly done: {_counts(done.totals)}; {'; '.join(filter(None, remedies))}."
