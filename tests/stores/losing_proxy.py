"""A TCP proxy before a Redis that loses what scripts are asked, or what they answer.

Those of the indexes of a cluster, which come before and after, get through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent_sessions.stores.redis.scripts import INDEX
from agent_sessions.testing.conformance.faults import Fault

CALLS = (b"EVALSHA", b"\r\nEVAL\r\n")


@asynccontextmanager
async def losing_proxy(port: int, fault: Fault) -> AsyncIterator[int]:
    """Run the proxy before a local Redis, and yield its port. What is lost, is lost with the connection."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while request := await reader.read(1 << 20):
                is_script = any(word in request for word in CALLS) and not any(word in request for word in INDEX)
                if is_script and fault == "request":
                    return
                server_writer.write(request)
                reply = await server_reader.read(1 << 20)
                if is_script and b"NOSCRIPT" not in reply:
                    return
                writer.write(reply)
        finally:
            server_writer.close()
            writer.close()
            connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(connections):
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
