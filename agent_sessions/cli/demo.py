"""`agent-sessions demo`: two frameworks, one session, and a restart in between."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from agent_sessions import Activation, Runner, Session, SessionError, SessionManager, Settings
from agent_sessions.errors import StoreUnavailableError
from agent_sessions.identifiers import DEFAULT_NAMESPACE
from agent_sessions.stores import open_store
from agent_sessions.stores.base import Store

KEPT_S = 3600
"""How long a session of the demo stays."""

_FRAMEWORKS = ("agents", "langchain_core", "langgraph")
_STYLES = {"user": "bold", "triage": "green", "checkout": "cyan", "skill": "yellow", "answer": "bold"}


def run_demo(*, second_turn_of: str = "") -> int:
    """Run the demo, or its second half on that session, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        settings = Settings.load()
        return asyncio.run(
            _Demo(console, settings, second_turn_of or f"demo-{secrets.token_hex(3)}").run(second_turn_of)
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _FRAMEWORKS:
            raise
        return _failed(
            f"The demo needs both frameworks, and the package {package} is missing, or too old.",
            "pip install 'agent-sessions-runtime[openai,langgraph,redis]'",
        )
    except StoreUnavailableError as error:
        return _failed(
            f"{error.message}.",
            "start it, point AK_SESSION__REDIS__URL elsewhere, or unset AK_SESSION__TYPE to stay in memory",
        )
    except SessionError as error:
        return _failed(str(error), "correct it and try again")


def _failed(reason: str, remedy: str) -> int:
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    errors.print(Text.assemble(("The demo stopped. ", "bold red"), reason))
    errors.print(Text.assemble(("What to do: ", "bold"), remedy))
    return 1


def _where(settings: Settings) -> str:
    """The store, as a person knows it. The URL carries no password: settings keep it apart."""
    return f"{settings.type} at {settings.redis.url}" if settings.type in ("redis", "valkey") else settings.type


class _Demo:
    def __init__(self, console: Console, settings: Settings, session_id: str) -> None:
        redis = settings.redis.model_copy(update={"ttl": KEPT_S})
        self._settings = settings.model_copy(update={"ttl": KEPT_S, "redis": redis})
        self._console = console
        self._session_id = session_id

    async def run(self, second_turn_of: str) -> int:
        from ._demo_shop import WISHES

        first, second = WISHES
        store = open_store(self._settings)
        try:
            if not second_turn_of:
                self._introduce()
                await SessionManager(store).get(self._session_id)  # if the store is away, this says so
                await self._turn(store, "Turn 1", "", first)
            if self._settings.type == "in_memory":
                await self._turn(store, "Turn 2", ", after a restart: a new manager, which has seen nothing", second)
            elif second_turn_of:
                await self._turn(store, "Turn 2", f", a new one: all that it knows is in {self._settings.type}", second)
            else:
                return self._second_process()
            await self._look(store)
            return 0
        finally:
            await store.aclose()

    def _introduce(self) -> None:
        self._say(Text.assemble(("agent-sessions demo", "bold"), f"   store: {_where(self._settings)}"))
        self._say("Two frameworks in one session. The models are scripted, all else is real: no key, no network.")

    async def _turn(self, store: Store, title: str, detail: str, prompt: str) -> None:
        from ._demo_shop import Shop

        self._heading(title, f"process {os.getpid()}{detail}")
        manager = SessionManager(store, settings=self._settings)
        runner = Runner(manager)
        self._tell("user", prompt)
        run = await runner.run(Shop(runner, self._tell), self._session_id, prompt)
        self._tell("answer", run.output)
        record = await manager.get(self._session_id)
        self._tell(
            "stored", f"what both frameworks did, in one atomic commit: revision {record.revision if record else 0}"
        )

    def _second_process(self) -> int:
        sys.stdout.flush()
        command = [sys.executable, "-m", "agent_sessions.cli", "demo", "--second-turn-of", self._session_id]
        return subprocess.run(command, check=False).returncode

    async def _look(self, store: Store) -> None:
        manager = SessionManager(store, settings=self._settings)
        self._heading("What the session holds", self._session_id)
        async with manager.read(self._session_id) as session:
            await self._show_state(session)
        self._heading("Its activations", "each is one run, with the session that its skills were told")
        for activation in reversed(await Runner(manager).activations(self._session_id)):
            self._show_activation(activation)
        self._heading("Next")
        for what, how in self._next_steps():
            self._say(Text.assemble(f"  {what:<24}", (how, "bold")))

    def _next_steps(self) -> list[tuple[str, str]]:
        stays = ("this session stays", f"for an hour, in {_where(self._settings)}")
        processes = ("in two real processes", "AK_SESSION__TYPE=redis make demo")
        return [
            processes if self._settings.type == "in_memory" else stays,
            ("the same as a program", "examples/pipeline.py, in the repository"),
            ("step by step", "docs/tutorial.md"),
        ]

    async def _show_state(self, session: Session) -> None:
        for name in session.namespaces():
            namespace = session.namespace(name)
            if name == DEFAULT_NAMESPACE:
                held = [f"value {name} = {value}" for name, value in namespace.items()]
            else:
                held = [f"values: {len(namespace)}"] if len(namespace) else []
            held += [f"log {log}: {count} items" for log, count in namespace.logs().items()]
            for collection in namespace.collections():
                entries = await namespace.collection(collection).range()
                held.append(f"collection {collection}: {len(entries)} entries")
            self._tell(name, ", ".join(held))

    def _show_activation(self, activation: Activation) -> None:
        end = activation.end or activation.start
        took = f"{(end - activation.start).total_seconds() * 1000:.0f} ms"
        skills = ", ".join(call.name for call in activation.skills)
        name = f"{'  └ ' if activation.parent_activation_id else ''}{activation.agent_name}"
        said = f"{activation.framework:<10} {activation.status:<9} {took:>6}  {activation.session_id}"
        self._say(f"  {name:<12} {said}" + (f"  skill {skills}" if skills else ""))

    # ------------------------------------------------------------------------------------------------ printing

    def _heading(self, title: str, detail: str = "") -> None:
        self._say(Text.assemble("\n", (title, "bold magenta"), f"  {detail}" if detail else ""))

    def _tell(self, who: str, what: str) -> None:
        indent = "    " if who == "skill" else "  "
        self._say(Text.assemble(indent, (f"{who:<{12 - len(indent)}} ", _STYLES.get(who, "dim")), what))

    def _say(self, text: Any) -> None:
        self._console.print(text)
