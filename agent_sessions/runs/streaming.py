"""Streaming a run: it goes on in a task of its own, and its events come through a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from .adapters import Call, Event, Outcome
from .execution import Execution, StreamForgottenError

EVENTS_AHEAD = 64
"""How many events the agent may be ahead of who reads them."""


@asynccontextmanager
async def streamed(
    execution: AbstractAsyncContextManager[Execution], *, abandon: bool, patience_s: float
) -> AsyncIterator[AsyncIterator[Event]]:
    """Run, and hand out the events. Whoever leaves early, or takes none for so long, cancels the run."""
    events = _Events(patience_s)
    task = asyncio.create_task(_produce(execution, abandon, events))
    try:
        yield events.taken()
    finally:
        task.cancel()
        await asyncio.wait({task})


class _Events:
    """What is between the run and who reads its events."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._queue: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._room = asyncio.Semaphore(EVENTS_AHEAD)

    async def put(self, event: Event) -> None:
        """Hand an event over, waiting for a place."""
        await self._in_time(self._room.acquire())
        self._queue.put_nowait(event)

    async def all_taken(self) -> None:
        """Return when the reader has come back for more after every event so far."""
        await self._in_time(self._queue.join())

    async def _in_time(self, reading: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await reading
        except TimeoutError:
            raise StreamForgottenError(
                f"nobody took the events of this stream for {self._patience_s:g} s, so the run was cancelled and "
                "nothing of it is stored. Read a stream to its end, or leave its block."
            ) from None

    def end(self, last: Event | BaseException) -> None:
        """Hand over how the run ended."""
        self._queue.put_nowait(last)

    async def taken(self) -> AsyncIterator[Event]:
        """The events, for the reader."""
        while True:
            event = await self._queue.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if event.type in ("done", "paused"):
                return
            self._queue.task_done()
            self._room.release()


async def _produce(execution: AbstractAsyncContextManager[Execution], abandon: bool, events: _Events) -> None:
    try:
        events.end(await _run(execution, abandon, events))
    except Exception as error:
        events.end(error)
    except BaseException as error:
        events.end(error)
        raise


async def _run(execution: AbstractAsyncContextManager[Execution], abandon: bool, events: _Events) -> Event:
    """Put the events but for the last one, which is returned when everything is stored."""
    async with execution as running:
        await running.settle(abandon=abandon)

        async def forward(call: Call) -> Outcome:
            outcome: Outcome | None = None
            stream = running.adapter.stream(call)
            try:
                async for event in stream:
                    if isinstance(event, Outcome):
                        outcome = event
                    else:
                        await events.put(event)
            finally:
                await _closed(stream)
            assert outcome is not None, f"the adapter of {running.adapter.framework} yielded no outcome"
            return outcome

        await running.work(forward)
        await events.all_taken()  # who has left by now, or forgotten the stream, does not want it stored
    run = running.result()
    return Event("paused" if run.pending else "done", raw=run.raw, run=run)


async def _closed(stream: AsyncIterator[Event | Outcome]) -> None:
    """Close a generator now, while its turn is open, not when it is collected."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


def stepped(own: asyncio.Runner, events: AsyncIterator[Event]) -> Iterator[Event]:
    """The events one by one, driving the loop only while one is asked for."""

    async def following() -> Event | None:
        return await anext(events, None)

    while (event := own.run(following())) is not None:
        yield event
