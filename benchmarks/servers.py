"""Redis servers of our own, on free loopback ports."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import redis

CLUSTER_PORTS = range(1024, 55_536)
"""A node has a second port, which is 10,000 higher."""


@contextmanager
def redis_server() -> Iterator[str]:
    """A server; yields its URL."""
    port = _free_port()
    with _running(port):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def redis_cluster() -> Iterator[list[int]]:
    """A cluster of three nodes; yields their ports."""
    with ExitStack() as stack:
        ports = [stack.enter_context(_running(_free_port(), "--cluster-enabled", "yes")) for _ in range(3)]
        nodes = [stack.enter_context(redis.Redis(port=port)) for port in ports]
        for node, (first, last) in zip(nodes, ((0, 5460), (5461, 10922), (10923, 16383)), strict=True):
            node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        for port in ports[1:]:
            nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", port)
        while any(node.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for node in nodes):
            time.sleep(0.05)
        yield ports


@contextmanager
def _running(port: int, *options: str) -> Iterator[int]:
    binary = shutil.which("redis-server")
    if binary is None:
        sys.exit("the benchmarks need a redis-server: install it (Debian: apt-get install redis-server)")
    with tempfile.TemporaryDirectory() as folder:
        own = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen([binary, *own, *options], stdout=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield port
        finally:
            server.terminate()
            server.wait()


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port in CLUSTER_PORTS:
            return port


def _wait_for(port: int) -> None:
    client = redis.Redis(port=port)
    for _ in range(200):
        try:
            client.ping()
            client.close()
            return
        except redis.ConnectionError:
            time.sleep(0.05)
    raise TimeoutError("redis-server did not start")
