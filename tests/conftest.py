"""The real components that tests run against."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

START_S = 10.0


def missing(what: str, remedy: str) -> NoReturn:
    """Skip a test for want of a component; in CI, where none may be missing, fail it."""
    line = f"{what} is not installed: {remedy}"
    if os.environ.get("AGENT_SESSIONS_REQUIRE_COMPONENTS") == "1":
        pytest.fail(line)
    pytest.skip(line)


class RedisServer:
    """A real redis-server on a free loopback port. It keeps its port when it is started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = _free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "no", "--enable-debug-command", "yes", *self._options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            try:
                if self.command("PING"):
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"redis-server did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Stop it the hard way. What it stored is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It accepts connections, and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str | bytes | int) -> Any:
        """Send a command beside the client under test."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        with redis.Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=30) as client:
            try:
                return client.execute_command(*words)
            except redis.ConnectionError as error:
                raise OSError("no answer") from error


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The redis-server that all tests share which do it no harm."""
    _need_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the shared redis-server, which is empty."""
    redis_server.command("FLUSHALL")
    return redis_server.url


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start a redis-server for this test alone, with options of its own."""
    _need_redis()
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        server = RedisServer(folder, *options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


def _need_redis() -> None:
    if importlib.util.find_spec("redis") is None:
        missing("the Python package redis", "pip install 'redis[hiredis]'")
    if shutil.which("redis-server") is None:
        missing("redis-server", "apt-get install redis-server")


def _free_port() -> int:
    """A free port, low enough that a cluster node can have its second one, which is 10,000 higher."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= 55_535:
            return port
