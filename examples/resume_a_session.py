"""Resume the session that a user was last active in, or begin one.

`get_or_create` is the whole of it, and gives the same session to however many ask at once. The long way is for an
application with rules of its own about what it resumes.

Prints:
    The phone gets a new session.
    The laptop goes on in the same one.
    Ten requests at once of somebody new: 1 session.
    The long way: the same one again.
"""

import asyncio
from uuid import uuid4

from agent_sessions import SessionManager, SessionRecord

ANN, BEN = f"ann-{uuid4()}", f"ben-{uuid4()}"


async def handle_user_connection(manager: SessionManager, user_id: str, device_type: str) -> SessionRecord:
    """Resume the most recently active session that is for the web, or make one."""
    for session in await manager.get_active(user_id):  # the most recently active first
        if session.metadata.get("app") == "web":
            return await manager.touch(session.session_id)
    return await manager.create(user_id, metadata={"app": "web", "device_type": device_type})


async def main() -> None:
    async with SessionManager.from_env() as manager:
        phone = await manager.get_or_create(ANN, {"app": "web", "device_type": "phone"})
        print("The phone gets a new session.")

        laptop = await manager.get_or_create(ANN, {"app": "web", "device_type": "laptop"})
        print("The laptop goes on in", "the same one." if laptop.session_id == phone.session_id else "another one.")

        records = await asyncio.gather(*(manager.get_or_create(BEN) for _ in range(10)))
        print(f"Ten requests at once of somebody new: {len({record.session_id for record in records})} session.")

        again = await handle_user_connection(manager, ANN, "tablet")
        print("The long way:", "the same one again." if again.session_id == phone.session_id else "another one.")


asyncio.run(main())
