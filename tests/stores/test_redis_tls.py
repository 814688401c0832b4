"""`rediss://`: certificates of the server, and of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_sessions import Settings
from agent_sessions.errors import InvalidError, StoreUnavailableError
from agent_sessions.settings import RedisSettings
from agent_sessions.stores.base import Key, Part
from agent_sessions.stores.redis import RedisStore
from tests.certificates import Authority
from tests.redis_cluster import RedisCluster
from tests.redis_server import RedisServer

from .redis_turns import EVERYTHING, KEY, change, everything, start_turn


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls_options(authority: Authority, *hosts: str) -> tuple[str, ...]:
    """A server with a certificate for these hosts, which wants one of the client."""
    certificate, key = authority.issue("server", *hosts)
    files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", authority.file)
    return ("--tls-port", "{tls_port}", *files, "--tls-auth-clients", "yes")


def store_of(server: RedisServer, authority: Authority, *, host: str = "127.0.0.1", **changes: Any) -> RedisStore:
    certificate, key = authority.issue("client")
    options = {"ssl_ca_certs": authority.file, "ssl_certfile": certificate, "ssl_keyfile": key, **changes}
    redis = RedisSettings(url=f"rediss://{host}:{server.tls_port}", **options)
    return RedisStore.from_settings(Settings(type="redis", redis=redis))


async def test_turns_over_tls_with_a_clients_certificate(
    start_redis: Callable[..., RedisServer], authority: Authority
) -> None:
    server = start_redis(*tls_options(authority, "127.0.0.1"))
    store, other = store_of(server, authority), store_of(server, authority)
    await store.commit(KEY, everything())
    assert (await other.open(KEY, wanted=EVERYTHING)).logs[0].items == [b"hi", b"ho"]
    await start_turn(store, "us")
    waiting = asyncio.create_task(start_turn(other, "them"))
    while (await store.open(KEY)).waiters == 0:  # noqa: ASYNC110 - it is Redis that tells
        await asyncio.sleep(0.005)
    await store.commit(KEY, change(values={Part("big", "v"): b"x" * 2**24}))
    assert (await asyncio.wait_for(waiting, 1)).granted
    assert (await other.open(KEY)).values["big"] == {"v": b"x" * 2**24}
    for one in (store, other):
        await one.aclose()


async def test_what_is_wrong_with_a_certificate_is_said(
    start_redis: Callable[..., RedisServer], authority: Authority, tmp_path: Path
) -> None:
    server = start_redis(*tls_options(authority, "redis.example"))
    stranger = Authority(tmp_path, "stranger")
    theirs = stranger.issue("impostor")
    without_one: dict[str, Any] = {"ssl_certfile": None, "ssl_keyfile": None}
    for changes, reason in [
        ({}, "certificate of Redis was not accepted: IP address mismatch"),
        ({"ssl_ca_certs": stranger.file}, "certificate of Redis was not accepted"),
        ({**without_one, "ssl_check_hostname": False}, "TLS handshake failed|can't be reached"),
        ({"ssl_certfile": theirs[0], "ssl_keyfile": theirs[1], "ssl_check_hostname": False}, "TLS|can't be reached"),
    ]:
        store = store_of(server, authority, **changes)
        with pytest.raises(StoreUnavailableError, match=reason) as raised:
            await store.commit(KEY, change())
        assert not raised.value.maybe_done
        await store.aclose()
    store = store_of(server, authority, ssl_check_hostname=False)
    await store.commit(KEY, change())
    await store.aclose()


async def test_a_port_without_tls_is_reported(start_redis: Callable[..., RedisServer], authority: Authority) -> None:
    server = start_redis()
    store = RedisStore.from_url(f"rediss://127.0.0.1:{server.port}", connect_timeout_s=1)
    with pytest.raises(StoreUnavailableError, match=r"did not answer in time|TLS handshake failed"):
        await store.open(KEY)
    await store.aclose()


def test_certificates_without_tls_are_refused(authority: Authority) -> None:
    with pytest.raises(InvalidError, match="needs TLS"):
        RedisStore.from_url("redis://localhost", ssl_ca_certs=authority.file)


async def test_a_cluster_over_tls(start_cluster: Callable[..., RedisCluster], authority: Authority) -> None:
    cluster = start_cluster(*tls_options(authority, "127.0.0.1"), "--tls-cluster", "yes", replicas=0)
    certificate, key = authority.issue("client")
    redis = RedisSettings(
        url=f"rediss://127.0.0.1:{cluster.nodes[0].tls_port}",
        cluster=True,
        ssl_ca_certs=Path(authority.file),
        ssl_certfile=Path(certificate),
        ssl_keyfile=Path(key),
    )
    store = RedisStore.from_settings(Settings(type="redis", redis=redis))
    for number in range(20):
        await store.commit(Key("t", "session", f"{number}"), change())
    assert await store.count("t", "session") == 20
    await store.aclose()
