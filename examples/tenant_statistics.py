"""What goes on in a tenant: how many are online, who they are, and nothing of another tenant.

Prints:
    currently online: 3, recently active: 1, in all: 5
    online: user-0, user-1, user-2
    of the other tenant: 0
"""

import asyncio
from uuid import uuid4

from agent_sessions import SessionManager

IDLE_AFTER = "100ms"  # of one session here, so that this example need not wait for half an hour


async def main() -> None:
    async with SessionManager.from_env() as everywhere:
        acme, other = everywhere.for_tenant(f"acme-{uuid4()}"), everywhere.for_tenant(f"other-{uuid4()}")

        for number in range(3):
            await acme.create(f"user-{number}")
        left = await acme.create("user-3")
        await acme.end(left.session_id)
        await acme.create("user-4", policy={"idle_after": IDLE_AFTER})
        await asyncio.sleep(0.2)

        stats = await acme.stats()  # counted by the index, in one call
        print(f"currently online: {stats.active}, recently active: {stats.idle}, in all: {stats.total}")
        page = await acme.list(status="active", limit=100)
        print("online:", ", ".join(sorted(record.user_id or "nobody" for record in page)))
        print("of the other tenant:", await other.count())


asyncio.run(main())
