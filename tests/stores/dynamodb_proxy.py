"""An HTTP proxy before DynamoDB Local that sees each request, and answers, loses or passes it on as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from agent_sessions.testing import FakeClock
from tests.dynamodb import DynamoDB

WRITES = {"UpdateItem", "TransactWriteItems", "BatchWriteItem", "PutItem", "DeleteItem"}


class Answer(NamedTuple):
    """What the service is made to say."""

    status: int
    body: dict[str, Any]


Decision = Literal["pass", "lose the request", "lose the reply"] | Answer
Decide = Callable[[str, dict[str, Any]], Decision]
"""Told the operation and its arguments."""


def throttled(code: str = "ProvisionedThroughputExceededException") -> Answer:
    """The service has no capacity left."""
    return Answer(400, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "slow down"})


@asynccontextmanager
async def proxy(port: int, decide: Decide) -> AsyncIterator[str]:
    """Run the proxy, and yield its URL. What is lost, is lost with the connection."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            while (request := await _message(reader)) is not None:
                head, body = request
                decision = decide(_operation(head), json.loads(body))
                if isinstance(decision, Answer):
                    writer.write(_reply(decision))
                    continue
                if decision == "lose the request":
                    return
                back.write(head + body)
                reply = await _message(there)
                if decision == "lose the reply" or reply is None:
                    return
                writer.write(b"".join(reply))
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            back.close()
            writer.close()
            connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(connections):
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@asynccontextmanager
async def dying(
    dynamodb: DynamoDB,
    requests: int,
    fault: Decision,
    begin: Callable[[dict[str, Any]], bool] | None = None,
    clock: FakeClock | None = None,
) -> AsyncIterator[Any]:
    """A store whose process dies so many requests after one, or after its beginning: the next is lost, or its answer,
    and all that follow."""
    left, begun = requests, begin is None

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        nonlocal left, begun
        if not begun:
            begun = begin is not None and begin(arguments)
            return "pass"
        left -= 1
        if left >= 0:
            return "pass"
        return fault if left == -1 else "lose the request"

    async with proxy(dynamodb.port, decide) as url:
        store = dynamodb.store(clock, url=url)
        yield store
        await store.aclose()


class Holding:
    """Holds a store's first request of a kind on its way. `make_session` is an option of the store."""

    def __init__(self, operation: str, is_it: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
        self._operation, self._is_it = operation, is_it
        self.on_its_way, self.may_go_on = asyncio.Event(), asyncio.Event()

    def make_session(self) -> Any:
        from aiobotocore.session import get_session

        session = get_session()
        session.register(f"before-parameter-build.dynamodb.{self._operation}", self._hold)
        return session

    async def _hold(self, params: dict[str, Any], **_: Any) -> None:
        if not self.on_its_way.is_set() and self._is_it(params):
            self.on_its_way.set()
            await self.may_go_on.wait()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """A request or a reply: its head and its body. None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    fields = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n"))
    if fields.get(b"transfer-encoding", b"").strip() == b"chunked":
        return head, await _chunks(reader)
    return head, await reader.readexactly(int(fields.get(b"content-length", 0)))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body whose length nobody has told, as it is sent."""
    body = b""
    while True:
        length = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(length, 16) + 2)
        body += length + chunk
        if len(chunk) == 2:
            return body


def _operation(head: bytes) -> str:
    target = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"x-amz-target:"))
    return target.decode().rpartition(".")[2]


def _reply(answer: Answer) -> bytes:
    body = json.dumps(answer.body).encode()
    head = f"HTTP/1.1 {answer.status} Answer\r\nContent-Type: application/x-amz-json-1.0\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
