"""Clients of DynamoDB, one for each running event loop, made when first needed there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import Context
from typing import Any, NamedTuple

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import DataNotFoundError, UnknownServiceError
from botocore.loaders import Loader, create_loader

from agent_sessions.stores.per_loop import PerLoop


class Endpoint(NamedTuple):
    """How the clients of a store are made."""

    make_session: Callable[[], AioSession]
    region: str | None
    url: str | None
    connect_timeout_s: float
    timeout_s: float
    max_connections: int


class LoopClient:
    """The client of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[Any] | None = None
        self._abandoned: weakref.finalize[Any, Any] | None = None
        self.checking = asyncio.Lock()
        """Held while the table is looked at."""
        self.queues: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        """By partition: held by one of those who write to it and were refused for others who did."""

    async def get(self) -> Any:
        """The client. Everybody who needs it while it is being made waits for the same one."""
        if self._opening is None or (self._opening.done() and self._has_failed(self._opening)):
            # In a context of its own: who happened to need it first is nobody's business there.
            self._opening = asyncio.get_running_loop().create_task(self._open(), context=Context())
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        if self._opening.done():
            return self._opening.result()
        return await asyncio.shield(self._opening)

    async def _open(self) -> Any:
        # The service's description is a large file: reading it would block the loop.
        await asyncio.to_thread(_read_ahead)
        session = self._endpoint.make_session()
        session.register_component("data_loader", _loader)
        config = AioConfig(
            connect_timeout=self._endpoint.connect_timeout_s,
            read_timeout=self._endpoint.timeout_s,
            max_pool_connections=self._endpoint.max_connections,
            retries={"total_max_attempts": 1},  # `requests.py` does it, in bounded time
            tcp_keepalive=True,
            user_agent_extra="agent-sessions",
        )
        opened = session.create_client(
            "dynamodb", region_name=self._endpoint.region, endpoint_url=self._endpoint.url, config=config
        )
        client = await self._stack.enter_async_context(opened)
        self._abandoned = weakref.finalize(self, _abandon, client, os.getpid())
        return client

    async def aclose(self) -> None:
        """Close the connections."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        await self._stack.aclose()
        if self._abandoned is not None:
            self._abandoned.detach()

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        if self._abandoned is not None:
            self._abandoned()

    @staticmethod
    def _has_failed(opening: asyncio.Task[Any]) -> bool:
        return opening.cancelled() or opening.exception() is not None


class Clients(PerLoop[LoopClient]):
    """The clients of a store."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(lambda: LoopClient(endpoint))


_loader: Loader = create_loader()  # keeps what it has read, for all stores of the process


def _read_ahead() -> None:
    """Let the loader read the files that making a client needs."""
    with contextlib.suppress(DataNotFoundError, UnknownServiceError):  # another version has other files
        for name in ("_retry", "endpoints", "partitions", "sdk-default-configuration"):
            _loader.load_data(name)
        for kind in ("service-2", "endpoint-rule-set-1"):
            _loader.load_service_model("dynamodb", kind)


def _abandon(client: Any, pid: int) -> None:
    """Close a client's sockets without its loop, and without a warning later on."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    if pid != os.getpid() or not isinstance(session, AIOHTTPSession):
        return
    for http in (getattr(session, "_sessions", None) or {}).values():
        with contextlib.suppress(Exception):
            connector = http._connector
            http._connector = None  # which is how a closed one looks
            for connections in connector._conns.values():
                for protocol, _ in connections:
                    _close_socket(protocol.transport)
            for protocol in connector._acquired:
                _close_socket(protocol.transport)
            connector._conns.clear()
            connector._acquired.clear()
            connector._closed = True


def _close_socket(transport: Any) -> None:
    secured = getattr(transport, "_ssl_protocol", None)
    if secured is not None:
        transport._closed = True
        transport = secured._transport
    socket = getattr(transport, "_sock", None)
    if socket is not None:
        socket.close()
        transport._sock, transport._closing = None, True
