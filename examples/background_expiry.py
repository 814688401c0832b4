"""Hear of sessions that ended by themselves: a task in the background puts their end down.

Nothing depends on such a task. A session that ran out is ended for everybody at that moment, whether anything runs or
not; what `expire_idle` adds is the event, and that each is told once, on however many hosts this runs.

Prints:
    ended by itself: shop (idle)
    ended by itself: sale (expired)
    still there: conversation
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from agent_sessions import SessionEvent, SessionManager


@contextlib.asynccontextmanager
async def background_expiry(manager: SessionManager, every_s: float) -> AsyncIterator[None]:
    """While the block runs, end what has run out."""

    async def sweep() -> None:
        while True:
            await manager.expire_idle()
            await asyncio.sleep(every_s)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()


async def main() -> None:
    async with SessionManager.from_env() as everywhere:
        manager = everywhere.for_tenant(f"acme-{uuid4()}")
        told: asyncio.Queue[SessionEvent] = asyncio.Queue()

        def on_event(event: SessionEvent) -> None:
            if event.type == "ended":
                told.put_nowait(event)

        manager.listen(on_event)
        async with background_expiry(manager, every_s=0.05):
            await manager.create("ann", session_id="shop", policy={"idle_after": "100ms", "end_after": "100ms"})
            await manager.create("ann", session_id="sale", expires_at=datetime.now(UTC) + timedelta(seconds=1))
            async with manager.open("conversation", user_id="ann") as session:  # never ends by idling
                session.update("turns", lambda turns: turns + 1, default=0)
            for _ in range(2):
                event = await asyncio.wait_for(told.get(), 30)
                print(f"ended by itself: {event.session_id} ({event.reason})")
        print("still there:", ", ".join(record.session_id for record in await manager.get_active("ann")))


asyncio.run(main())
