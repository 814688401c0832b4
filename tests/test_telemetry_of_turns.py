"""Spans and metrics of turns, through OpenTelemetry's own exporters. They carry no values."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import asyncio, json
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import SessionBusyError, SessionConflictError

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
SECRET = "hunter2"

async def stored(manager):
    async with manager.open("stored", user_id=SECRET + "-user", metadata={"token": SECRET}) as session:
        session.set("password", SECRET)
        await session.log("l").append([SECRET])
        await session.log("l").read()

async def discarded(manager):
    try:
        async with manager.open("discarded") as session:
            session.set("password", SECRET)
            raise ValueError(SECRET)
    except ValueError:
        pass

async def conflicting(manager, other):
    async def overtake():
        await other.unlock("conflicting", force=True)
        async with other.open("conflicting"):
            pass
    try:
        async with manager.open("conflicting") as session:
            await asyncio.create_task(overtake(), context=__import__("contextvars").Context())
    except SessionConflictError:
        pass

async def busy(manager, other):
    async def try_it():
        try:
            async with other.open("busy", wait_s=0.05):
                pass
        except SessionBusyError:
            pass
    async with manager.open("busy"):
        await asyncio.create_task(try_it(), context=__import__("contextvars").Context())

async def nested(manager):
    with trace.get_tracer("user").start_as_current_span("request"):
        async with manager.open("nested"):
            async with manager.open("nested"):
                with trace.get_tracer("user").start_as_current_span("inside"):
                    pass

async def main():
    store = MemoryStore()
    manager, other = SessionManager(store), SessionManager(store)
    await stored(manager)
    await discarded(manager)
    await conflicting(manager, other)
    await busy(manager, other)
    await nested(manager)

asyncio.run(main())
print(json.dumps({
    "spans": [
        {"name": span.name, "attributes": dict(span.attributes), "id": span.context.span_id,
         "parent": span.parent and span.parent.span_id, "events": [str(event.attributes) for event in span.events],
         "status": str(span.status.description)}
        for span in spans.get_finished_spans()
    ],
    "metrics": {
        metric.name: [
            {"attributes": dict(point.attributes), "unit": metric.unit, "count": getattr(point, "count", None),
             "sum": getattr(point, "sum", getattr(point, "value", None))}
            for point in metric.data.data_points
        ]
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    },
}))
"""


class Observed:
    """What a program's exporters got. It runs by itself: providers are set once in a process."""

    _said: dict[str, Any] | None = None

    @classmethod
    def said(cls) -> dict[str, Any]:
        if cls._said is None:
            done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            cls._said = json.loads(done.stdout)
        return cls._said

    @classmethod
    def turns(cls, session_id: str) -> list[dict[str, Any]]:
        spans = [span for span in cls.said()["spans"] if span["attributes"].get("session.id") == session_id]
        assert all(span["name"] == "agent_sessions.turn" for span in spans)
        return [span["attributes"] for span in spans]

    @classmethod
    def metric(cls, name: str, **attributes: str) -> Any:
        points = cls.said()["metrics"][f"agent_sessions.turn.{name}"]
        [point] = [point for point in points if point["attributes"] == attributes]
        return point


def test_a_turn_is_a_span_that_says_how_it_went() -> None:
    [turn] = Observed.turns("stored")
    assert turn["session.tenant"] == "default"
    assert turn["session.turn.outcome"] == "stored"
    assert turn["session.turn.round_trips"] == 2
    assert turn["session.turn.bytes_written"] > 0
    assert [turn["session.turn.outcome"] for turn in Observed.turns("discarded")] == ["discarded"]


def test_conflicts_and_busy_sessions_are_told_by_their_codes() -> None:
    outcomes = [turn["session.turn.outcome"] for turn in Observed.turns("conflicting")]
    assert sorted(outcomes) == ["SESSION_CONFLICT", "stored"]
    refused, held = sorted(Observed.turns("busy"), key=lambda turn: turn["session.turn.outcome"])
    assert (refused["session.turn.outcome"], held["session.turn.outcome"]) == ("SESSION_BUSY", "stored")
    assert refused["session.turn.wait"] >= 0.04
    assert held["session.turn.wait"] < 0.04


def test_metrics_count_turns_by_outcome() -> None:
    assert Observed.metric("duration", outcome="stored")["count"] == 4
    assert Observed.metric("duration", outcome="discarded")["count"] == 1
    assert Observed.metric("wait", outcome="SESSION_BUSY")["sum"] >= 0.04
    assert Observed.metric("round_trips", outcome="stored")["sum"] == 8
    assert Observed.metric("bytes_written", outcome="stored")["unit"] == "By"
    assert Observed.metric("conflicts")["sum"] == 1


def test_a_turn_is_in_the_trace_of_its_caller_and_a_join_is_no_turn_of_its_own() -> None:
    spans = {
        span["name"]: span
        for span in Observed.said()["spans"]
        if span["attributes"].get("session.id") in (None, "nested")
    }
    assert spans["agent_sessions.turn"]["parent"] == spans["request"]["id"]
    assert spans["inside"]["parent"] == spans["agent_sessions.turn"]["id"]
    assert len(Observed.turns("nested")) == 1


def test_no_span_and_no_metric_carries_a_value() -> None:
    said = json.dumps(Observed.said())
    assert "hunter2" not in said
    assert "password" not in said
    assert not [
        metric for metric in Observed.said()["metrics"].values() for point in metric if "session.id" in str(point)
    ]


def test_a_turn_in_a_process_that_traces_nothing_imports_nothing() -> None:
    code = """
import asyncio, sys
from agent_sessions import MemoryStore, SessionManager
async def main():
    async with SessionManager(MemoryStore()).open("s") as session:
        session.set("x", 1)
asyncio.run(main())
print("opentelemetry" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
