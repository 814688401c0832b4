"""Spans and metrics of turns, as OpenTelemetry's own exporters get them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_sessions import MemoryStore, Runner, Session, SessionManager, telemetry
from agent_sessions.errors import SessionBusyError, SessionConflictError, SessionError
from tests.fixtures import MakeManager, elsewhere, make_manager, manager
from tests.support import Deaf, alone, before, waiters

__all__ = ["elsewhere", "make_manager", "manager"]

SECRET = "4111-1111-1111-1111"
METRICS = ("duration s", "wait s", "round_trips 1", "bytes_read By", "bytes_written By")


class Fault(Exception):
    """What an agent may raise."""


class Told:
    """What OpenTelemetry was told."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers, self.meters = TracerProvider(shutdown_on_exit=False), MeterProvider([self._reader])
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == "agent_sessions.turn"]

    def attributes(self) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.spans()]

    def outcomes(self) -> list[Any]:
        return [attributes["session.turn.outcome"] for attributes in self.attributes()]

    def points(self) -> dict[str, list[Any]]:
        """The data points of each metric."""
        data = self._reader.get_metrics_data()
        scopes = [] if data is None else [scope for one in data.resource_metrics for scope in one.scope_metrics]
        return {f"{one.name} {one.unit}": list(one.data.data_points) for scope in scopes for one in scope.metrics}

    def everything(self) -> str:
        spans = "\n".join(span.to_json() for span in self._exporter.get_finished_spans())
        return f"{spans}\n{self._reader.get_metrics_data()}\n{self.points()}"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """Providers that only this test sees: OpenTelemetry lets a process set them once."""
    told = Told()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", told.tracers)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", told.meters)
    telemetry._instruments.cache_clear()
    yield told
    telemetry._instruments.cache_clear()
    told.tracers.shutdown()
    told.meters.shutdown()


async def turn(manager: SessionManager, **options: Any) -> None:
    async with manager.open("s", **options) as session:
        session.set("value", "x" * 1000)


# ------------------------------------------------------------------------------------------------------- what is told


async def test_a_turn_is_a_span_with_what_it_cost(told: Told, manager: SessionManager) -> None:
    await turn(manager.for_tenant("acme"))
    [attributes] = told.attributes()
    assert (attributes["session.id"], attributes["session.tenant"]) == ("s", "acme")
    assert attributes["session.turn.outcome"] == "stored"
    assert attributes["session.turn.round_trips"] == 2
    assert 1000 < attributes["session.turn.bytes_written"] < 1500
    assert 0 <= attributes["session.turn.wait"] < 5
    [span] = told.spans()
    assert span.status.is_unset
    assert span.events == ()


async def test_metrics_carry_units_and_the_outcome_and_no_session(told: Told, manager: SessionManager) -> None:
    await turn(manager)
    await turn(manager)
    points = told.points()
    assert set(points) == {f"agent_sessions.turn.{name}" for name in METRICS}
    for [point] in points.values():
        assert point.count == 2
        assert dict(point.attributes) == {"outcome": "stored"}
    assert points["agent_sessions.turn.round_trips 1"][0].sum == 4


async def test_a_turn_that_only_reads_writes_nothing(told: Told, manager: SessionManager) -> None:
    await turn(manager)
    async with manager.open("s") as session:
        session.get("value")
    assert told.attributes()[-1]["session.turn.bytes_written"] < 100
    assert told.outcomes() == ["stored", "stored"]


async def test_a_process_that_has_not_seen_a_session_reads_it_and_one_that_has_does_not(
    told: Told, manager: SessionManager, elsewhere: SessionManager
) -> None:
    for one in (manager, elsewhere, elsewhere):
        async with one.open("s") as session:
            if session.get("value") is None:
                session.set("value", "x" * 1000)
    assert [attributes["session.turn.bytes_read"] > 1000 for attributes in told.attributes()] == [False, True, False]


async def test_an_inner_open_and_a_nested_run_are_part_of_one_turn(told: Told, manager: SessionManager) -> None:
    runner = Runner(manager)

    async def inner(prompt: str, session: Session) -> str:
        async with manager.open("s") as opened:
            opened.set("value", prompt)
        return prompt

    async def outer(prompt: str, session: Session) -> str:
        return str((await runner.run(inner, session, prompt)).output)

    await runner.run(outer, "s", "hi")
    assert told.outcomes() == ["stored"]


async def test_what_runs_in_a_turn_is_a_child_of_its_span(told: Told, manager: SessionManager) -> None:
    with told.tracers.get_tracer("app").start_as_current_span("request") as request:
        async with manager.open("s"), manager.open("other"):
            pass
    other, turn = told.spans()
    assert other.parent is not None
    assert turn.parent is not None
    assert other.parent.span_id == turn.context.span_id
    assert turn.parent.span_id == request.get_span_context().span_id


async def test_steps_are_counted(told: Told, manager: SessionManager) -> None:
    async with manager.open("s", commit="step") as session:
        for n in range(3):
            await session.log("log").append([n])
    [attributes] = told.attributes()
    assert attributes["session.turn.round_trips"] >= 4


async def test_the_time_that_a_turn_waited_is_told(
    told: Told, manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s"):
        started = asyncio.get_running_loop().time()
        waiting = asyncio.create_task(turn(elsewhere), context=alone())
        await waiters(manager, "s", 1)
        await asyncio.sleep(0.05)
    await waiting
    ended = asyncio.get_running_loop().time()
    _, second = told.attributes()
    assert 0.05 <= second["session.turn.wait"] <= ended - started
    assert second["session.turn.round_trips"] >= 3


# ----------------------------------------------------------------------------------------------------- how it ended


async def test_a_turn_that_raises_is_discarded(told: Told, manager: SessionManager) -> None:
    with pytest.raises(Fault):
        async with manager.open("s"):
            raise Fault(SECRET)
    assert told.outcomes() == ["discarded"]
    assert told.attributes()[0]["session.turn.bytes_written"] == 0


async def test_a_cancelled_turn_is_discarded(told: Told, manager: SessionManager) -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        async with manager.open("s"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told.outcomes() == ["discarded"]


async def test_a_turn_that_may_not_wait_is_busy(told: Told, manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s"):
        with pytest.raises(SessionBusyError):
            await asyncio.create_task(turn(elsewhere, wait_s=0), context=alone())
    assert told.outcomes() == ["SESSION_BUSY", "stored"]


async def test_a_conflict_is_counted(told: Told, manager: SessionManager, elsewhere: SessionManager) -> None:
    async def overtaken() -> None:
        async with manager.open("s") as session:
            session.set("value", 1)
            await elsewhere.unlock("s", force=True)
            await asyncio.create_task(turn(elsewhere), context=alone())

    assert "agent_sessions.turn.conflicts 1" not in told.points()
    for _ in range(2):
        with pytest.raises(SessionConflictError):
            await overtaken()
    assert told.outcomes() == ["stored", "SESSION_CONFLICT"] * 2
    [conflicts] = told.points()["agent_sessions.turn.conflicts 1"]
    assert conflicts.value == 2
    counts = {point.attributes["outcome"]: point.count for point in told.points()["agent_sessions.turn.duration s"]}
    assert counts == {"stored": 2, "SESSION_CONFLICT": 2}


async def test_a_store_that_is_away_is_told_by_its_code(told: Told, make_manager: MakeManager) -> None:
    manager = make_manager(Deaf, lease_s=0.1)
    before(manager, Deaf).is_unreachable = True
    with pytest.raises(SessionError):
        await turn(manager)
    assert told.outcomes() == ["STORE_UNAVAILABLE"]


# ----------------------------------------------------------------------------------------------- what is never told


async def test_no_stored_value_is_told(told: Told, manager: SessionManager) -> None:
    async def agent(prompt: str, session: Session) -> str:
        session.set(SECRET, prompt)
        await session.log("log").append([prompt])
        await session.collection("entries").put(SECRET, prompt)
        if prompt.startswith("fail"):
            raise Fault(SECRET)
        return prompt

    runner = Runner(manager)
    await runner.run(agent, "s", SECRET, metadata={"card": SECRET}, user_id=f"user {SECRET}")
    with pytest.raises(Fault):
        await runner.run(agent, "s", f"fail {SECRET}")
    with pytest.raises(SessionError):
        async with manager.open("s", user_id="another"):
            pass
    assert told.outcomes() == ["stored", "discarded", "FORBIDDEN"]
    assert SECRET not in told.everything()


async def test_one_provider_is_enough(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.undo()
    assert telemetry._is_configured() is False
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", told.meters)
    telemetry._instruments.cache_clear()
    await turn(SessionManager(MemoryStore()))
    assert told.spans() == []
    assert len(told.points()) == len(METRICS)


SCRIPT = """
import asyncio, sys
from agent_sessions import MemoryStore, SessionManager, telemetry

def refuse():
    raise AssertionError("measured")

telemetry._instruments = refuse

async def turn():
    async with SessionManager(MemoryStore()).open("s") as session:
        session.set("value", 1)

{first}
asyncio.run(turn())
{then}
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("", "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"),
        ("import opentelemetry.trace, opentelemetry.metrics", "assert 'opentelemetry.sdk' not in sys.modules"),
        ("from opentelemetry import trace; trace.get_tracer('app')", ""),
        ("from opentelemetry import metrics; metrics.get_meter('app')", ""),
    ],
    ids=["not imported", "imported", "tracer used", "meter used"],
)
def test_nothing_is_measured_and_nothing_imported_where_nobody_has_set_a_provider(first: str, then: str) -> None:
    script = SCRIPT.format(first=first, then=then)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_provider_set_later_is_used_from_then_on() -> None:
    script = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from agent_sessions import MemoryStore, SessionManager

manager = SessionManager(MemoryStore())

async def turn():
    async with manager.open("s"):
        pass

asyncio.run(turn())
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
asyncio.run(turn())
assert [span.name for span in exporter.get_finished_spans()] == ["agent_sessions.turn"]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
