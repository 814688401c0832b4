"""OpenTelemetry spans and metrics of turns, through its API only.

Nothing is measured, and nothing imported, in a process where nobody has set a provider. No span and no metric carries
a stored value; a session's id is on the span only.

| span | attributes |
|---|---|
| `agent_sessions.turn` | `session.id`, `session.tenant`, `session.turn.outcome`, `session.turn.duration`, ... |

| metric | unit | attributes |
|---|---|---|
| `agent_sessions.turn.duration`, `agent_sessions.turn.wait` | s | `outcome` |
| `agent_sessions.turn.round_trips`, `agent_sessions.turn.bytes_written` | 1, By | `outcome` |
| `agent_sessions.turn.conflicts` | 1 | |

`outcome` is `stored`, `discarded`, or the code of the error that ended the turn: `SESSION_BUSY`, ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from .errors import SessionError
from .stores.base import Key
from .turns.commits import Traffic

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SCOPE = "agent_sessions"

_MEASURES = {"duration": "s", "wait": "s", "round_trips": "1", "bytes_read": "By", "bytes_written": "By"}


class Observation(Struct):
    """What is said of a turn when it is over."""

    traffic: Traffic
    wait_s: float = 0.0
    outcome: str = "stored"


@contextmanager
def observed_turn(key: Key) -> Iterator[Observation]:
    """Observe a turn: a span around it, and its metrics at the end."""
    observation = Observation(Traffic())
    if not _is_configured():
        yield observation
        return
    instruments = _instruments()
    started = time.monotonic()
    attributes = {"session.id": key.id, "session.tenant": key.tenant}
    with instruments.tracer.start_as_current_span(
        "agent_sessions.turn", attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield observation
        except BaseException as error:
            observation.outcome = error.code if isinstance(error, SessionError) else "discarded"
            raise
        finally:
            instruments.record(span, observation, time.monotonic() - started)


class _Instruments:
    def __init__(self) -> None:
        from opentelemetry import metrics, trace

        self.tracer = trace.get_tracer(SCOPE)
        meter = metrics.get_meter(SCOPE)
        self._conflicts = meter.create_counter("agent_sessions.turn.conflicts", "1")
        self._measures: dict[str, Any] = {
            name: meter.create_histogram(f"agent_sessions.turn.{name}", unit) for name, unit in _MEASURES.items()
        }

    def record(self, span: Span, turn: Observation, seconds: float) -> None:
        measured = {"duration": seconds, "wait": turn.wait_s, **structs.asdict(turn.traffic)}
        for name, amount in measured.items():
            self._measures[name].record(amount, {"outcome": turn.outcome})
            span.set_attribute(f"session.turn.{name}", amount)
        if turn.outcome == "SESSION_CONFLICT":
            self._conflicts.add(1)
        span.set_attribute("session.turn.outcome", turn.outcome)


def _is_configured() -> bool:
    trace, metrics = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.metrics")
    has_tracer = trace is not None and not _is_proxy(trace.get_tracer_provider())
    return has_tracer or (metrics is not None and not _is_proxy(metrics.get_meter_provider()))


def _is_proxy(provider: object) -> bool:
    """Whether it only stands for a provider that nobody has set; one of these two classes has no public name."""
    return "Proxy" in type(provider).__name__


@cache
def _instruments() -> _Instruments:
    return _Instruments()
