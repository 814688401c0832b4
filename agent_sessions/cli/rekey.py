"""`agent-sessions rekey`: encrypt everything in the store with the first key."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from rich.console import Console

from agent_sessions import SessionError, Settings
from agent_sessions.errors import InvalidError, StoreUnavailableError
from agent_sessions.stores import open_store

if TYPE_CHECKING:
    from agent_sessions.stores.encryption import Progress

LINE_EVERY_S = 5.0
"""How often there is a line of progress where there is no terminal."""


def run_rekey(*, restart: bool) -> int:
    """Rekey the store that the environment names, and return the exit code: 1 if that is not wholly done."""
    try:
        return asyncio.run(_rekey(_checked(Settings.load()), restart))
    except KeyboardInterrupt:
        reason = "interrupted"
    except StoreUnavailableError as error:
        reason = str(error)
    except SessionError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Stopped: {reason}. Run it again, and it goes on from there.", file=sys.stderr)
    return 1


def _checked(settings: Settings) -> Settings:
    if not settings.encryption.keys:
        message = "no encryption keys are set, and the first of them is what everything would be encrypted with"
        raise InvalidError("SETTING", message, field="AK_SESSION__ENCRYPTION__KEYS")
    if settings.type == "in_memory":
        message = "there is nothing to do in memory: name the store that holds the sessions"
        raise InvalidError("SETTING", message, field="AK_SESSION__TYPE")
    return settings


async def _rekey(settings: Settings, restart: bool) -> int:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    store = open_store(settings)  # says what to install if it can't encrypt
    from agent_sessions.stores.encryption import EncryptedStore, Progress, rekey

    assert isinstance(store, EncryptedStore)  # since there are keys
    console.print(f"Encrypting everything in {settings.type} with the key {store.keyring.key_ids[0]}.")
    progress, line_due = Progress(), time.monotonic() + LINE_EVERY_S
    reports = rekey(store.inner, store.keyring, restart=restart, wait_s=settings.turn.wait_s)
    try:
        async with aclosing(reports):
            with console.status("") as status:  # shows nothing where there is no terminal
                async for progress in reports:
                    for problem in progress.problems:
                        tenant, kind, id = problem.key
                        console.print(f"{kind} {id!r} of tenant {tenant!r}: {problem.what}")
                    status.update(_counts(progress))
                    if not console.is_terminal and time.monotonic() >= line_due:
                        console.print(_counts(progress))
                        line_due = time.monotonic() + LINE_EVERY_S
    finally:
        await store.aclose()
    console.print(f"Done: {_counts(progress)}.")
    if progress.failed:
        console.print("What could not be rewritten is as it was. Keep the keys that it names, and run this again.")
    elif progress.in_use:
        console.print("Keep all keys, and run this again: a key that was in use may still need another than the first.")
    else:
        console.print("Everything is encrypted with the first key; no other is needed any more.")
    return 0 if progress.is_clean else 1


def _counts(progress: Progress) -> str:
    text = f"{progress.looked_at:,} looked at, {progress.rewritten:,} rewritten"
    text += f", {progress.in_use:,} in use" if progress.in_use else ""
    return text + (f", {progress.failed:,} failed" if progress.failed else "")
