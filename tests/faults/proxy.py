"""A TCP proxy that loses replies."""

from __future__ import annotations

import asyncio
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["drop the reply", "close the connection"]

EVERY = 7


class LossyProxy:
    """Stands before a server. Every seventh request reaches it, but the answer is lost on the way back."""

    def __init__(self, url: str, fault: Fault) -> None:
        self._target = urlsplit(url)
        self._fault = fault
        self._requests = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.lost = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in [*self._writers]:
            writer.close()
        await asyncio.gather(*self._tasks)

    @property
    def url(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return f"redis://127.0.0.1:{port}{self._target.path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        swallow = asyncio.Event()
        answers = asyncio.create_task(_pump(there, writer, swallow))
        try:
            while request := await reader.read(2**20):
                self._requests += 1
                lose = self._requests % EVERY == 0
                if lose:
                    self.lost += 1
                    swallow.set()
                back.write(request)
                await back.drain()
                if lose and self._fault == "close the connection":
                    return
        except ConnectionError:
            return
        finally:
            back.close()
            writer.close()
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            self._tasks.discard(task)
            self._writers.discard(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: asyncio.Event) -> None:
    """Carry answers, but for one when told to swallow it."""
    while answer := await reader.read(2**20):
        if swallow.is_set():
            swallow.clear()
            continue
        writer.write(answer)
        await writer.drain()
