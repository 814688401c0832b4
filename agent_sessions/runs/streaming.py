"""Streaming a run: it goes on in a task of its own, and its events come through a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from .adapters import Call, Event, Outcome
from .execution import Execution

EVENTS_AHEAD = 64
"""How many events the agent may be ahead of who reads them."""


@asynccontextmanager
async def streamed(
    execution: AbstractAsyncContextManager[Execution], *, abandon: bool, patience_s: float
) -> AsyncIterator[AsyncIterator[Event]]:
    """Run, and hand out the events. Whoever leaves early, or takes none for so long, cancels the run."""
    events: asyncio.Queue[Event | BaseException] = asyncio.Queue(EVENTS_AHEAD)
    task = asyncio.create_task(_produce(execution, abandon, patience_s, events))
    try:
        yield _consume(events)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _produce(
    execution: AbstractAsyncContextManager[Execution],
    abandon: bool,
    patience_s: float,
    events: asyncio.Queue[Event | BaseException],
) -> None:
    try:
        last: Event | BaseException = await _run(execution, abandon, patience_s, events)
    except Exception as error:
        last = error
    await events.put(last)


async def _run(
    execution: AbstractAsyncContextManager[Execution],
    abandon: bool,
    patience_s: float,
    events: asyncio.Queue[Event | BaseException],
) -> Event:
    """Put the events but for the last one, which is returned when everything is stored."""
    async with execution as running:
        await running.settle(abandon=abandon)

        async def forward(call: Call) -> Outcome:
            outcome: Outcome | None = None
            async for event in running.adapter.stream(call):
                if isinstance(event, Outcome):
                    outcome = event
                else:
                    await asyncio.wait_for(events.put(event), patience_s)
            assert outcome is not None, f"the adapter of {running.adapter.framework} yielded no outcome"
            return outcome

        await running.work(forward)
    run = running.result()
    return Event("paused" if run.pending else "done", raw=run.raw, run=run)


async def _consume(events: asyncio.Queue[Event | BaseException]) -> AsyncIterator[Event]:
    while True:
        event = await events.get()
        if isinstance(event, BaseException):
            raise event
        yield event
        if event.type in ("done", "paused"):
            return


def stepped(own: asyncio.Runner, events: AsyncIterator[Event]) -> Iterator[Event]:
    """The events one by one, driving the loop only while one is asked for."""

    async def following() -> Event | None:
        return await anext(events, None)

    while (event := own.run(following())) is not None:
        yield event
