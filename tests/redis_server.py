"""A redis-server, or valkey-server, of a test's own."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

START_S = 10.0


class RedisServer:
    """A real server on a free loopback port. It keeps its port when it is started again."""

    def __init__(self, folder: Path, *options: str, program: str = "redis-server") -> None:
        self.port = free_port()
        self.tls_port = free_port()
        """Where it listens if an option says so: `--tls-port {tls_port}`."""
        self._folder = folder
        self._options = options
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        """Start it."""
        command = [self._program, *self._arguments()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def _arguments(self) -> list[str]:
        own = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        return [
            *own,
            "--save",
            "",
            "--appendonly",
            "no",
            "--enable-debug-command",
            "yes",
            *(option.replace("{tls_port}", str(self.tls_port)) for option in self._options),
        ]

    def wait_until_up(self) -> None:
        """Return when it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            try:
                if self.command("PING"):
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"{self._program} did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

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

    def raw(self, *words: str | bytes | int) -> Any:
        """The same, and the reply is as the server gave it."""
        from redis.connection import Connection

        connection = Connection(port=self.port, protocol=2, socket_timeout=30)
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            connection.disconnect()
