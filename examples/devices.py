"""The devices that a user is logged in on, logging out elsewhere, and no more than three at once.

Prints:
    Logged in on: laptop, phone, tablet (this one)
    Logged out elsewhere: 2
    Logged in on: tablet (this one)
    The phone is told: SESSION_ALREADY_ENDED
    A fourth device at once: SESSION_LIMIT_REACHED
    With on_limit="end_oldest" it takes the place of the one that rested longest: still 3.
"""

import asyncio
from uuid import uuid4

from agent_sessions import SessionManager
from agent_sessions.errors import SessionEndedError, SessionLimitError

USER = f"ann-{uuid4()}"


async def devices(manager: SessionManager, current_session_id: str) -> str:
    return ", ".join(
        sorted(
            session.metadata.get("device_type", "unknown")
            + (" (this one)" if session.session_id == current_session_id else "")
            for session in await manager.get_active(USER)
        )
    )


async def main() -> None:
    async with SessionManager.from_env() as everywhere:
        manager = everywhere.for_tenant(f"tenant-{uuid4()}")  # whose policy is its own
        await manager.set_policy({"max_sessions_per_user": 3})

        phone, _, tablet = [
            await manager.create(USER, metadata={"device_type": device}) for device in ("phone", "laptop", "tablet")
        ]
        print("Logged in on:", await devices(manager, tablet.session_id))

        elsewhere = await manager.end_all(USER, except_session_id=tablet.session_id)
        print("Logged out elsewhere:", elsewhere.ended)
        print("Logged in on:", await devices(manager, tablet.session_id))

        try:
            await manager.touch(phone.session_id)
        except SessionEndedError as error:
            print("The phone is told:", error.code)

        for device in ("phone", "laptop"):
            await manager.create(USER, metadata={"device_type": device})
        try:
            await manager.create(USER, metadata={"device_type": "watch"})
        except SessionLimitError as error:
            print("A fourth device at once:", error.code)

        await manager.set_policy({"max_sessions_per_user": 3, "on_limit": "end_oldest"})
        await manager.create(USER, metadata={"device_type": "watch"})
        online = len(await manager.get_active(USER))
        print(f'With on_limit="end_oldest" it takes the place of the one that rested longest: still {online}.')


asyncio.run(main())
