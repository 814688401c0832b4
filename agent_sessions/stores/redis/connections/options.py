"""How connections are made: by a URL and options, or as a client of the user's own makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from agent_sessions.errors import InvalidError
from agent_sessions.stores.redis.connections.clients import Settings
from agent_sessions.stores.redis.connections.cluster import Cluster, Remap
from agent_sessions.stores.redis.connections.sentinel import Sentinels
from agent_sessions.stores.redis.connections.servers import Address, OneServer, Servers

# The time-outs of an answer, and what is tried again, are the business of `clients.py`.
_OURS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_timeout": None,
    "health_check_interval": 0,
    "retry": Retry(NoBackoff(), 0),
}
_OF_A_POOL = ("maint_notifications", "oss_cluster_maint", "orig_", "himport_registry", "event_dispatcher")
_OF_A_CLIENT = (
    "connection_pool",
    "connection_class",
    "max_connections",
    "response_callbacks",
    "legacy_responses",
    "ssl",
)


class Limits(NamedTuple):
    """How long things may take, and how many connections there are."""

    connect_timeout_s: float = 2.0
    timeout_s: float = 5.0
    max_connections: int = 8

    @property
    def patience_s(self) -> float:
        """So long servers may take to change their places: a try that timed out is followed by another."""
        return self.connect_timeout_s + self.timeout_s


class _Template:
    """Makes connections that are alike but for the address."""

    def __init__(self, connection_class: type[AbstractConnection], options: Mapping[str, Any]) -> None:
        # A pool of redis-py's own, which is not used as one: it completes the options.
        self._pool = ConnectionPool(connection_class=connection_class, **options)

    @property
    def address(self) -> Address:
        """Where the options lead by themselves."""
        where = self._pool.connection_kwargs
        path = where.get("path")
        return Address(path, 0) if path else Address(str(where.get("host", "localhost")), int(where.get("port", 6379)))

    def make(self, address: Address) -> AbstractConnection:
        """A connection, not yet connected."""
        options = self._pool.connection_kwargs
        if address.port:
            options = options | {"host": address.host, "port": address.port}
        return self._pool.connection_class(**options)


def by_url(
    url: str,
    *,
    password: str | None,
    ssl: bool,
    cluster: bool,
    startup_nodes: Sequence[tuple[str, int]],
    address_remap: Remap | None,
    sentinels: Sequence[tuple[str, int]],
    service_name: str,
    sentinel_kwargs: Mapping[str, Any] | None,
    limits: Limits,
    options: Mapping[str, Any],
) -> Settings:
    """By a URL and options. The words are redis-py's.

    Raises:
        InvalidError: The URL is none, or does not go with the options.
    """
    given = dict(options) if password is None else {**options, "password": password}
    if not url.startswith("unix"):
        given.setdefault("socket_keepalive", True)
    try:
        pool: ConnectionPool = ConnectionPool.from_url(_as_redis(url, ssl=ssl), **given)
    except ValueError:
        # Its text may repeat the URL, with the password.
        message = "not a Redis URL; one looks like redis://localhost:6379/0"
        raise InvalidError("URL", message, field="url") from None
    if not issubclass(pool.connection_class, SSLConnection):
        for name in options:
            if name.startswith("ssl_"):
                raise InvalidError("URL", f"{name} needs TLS: a URL that starts with rediss://", field="url")
    template = _Template(pool.connection_class, _own(pool.connection_kwargs, limits))
    servers: Servers = OneServer(template.address)
    if cluster:
        nodes = [template.address, *(Address(*node) for node in startup_nodes)]
        _check_cluster(pool.connection_kwargs, sentinels)
        servers = Cluster(nodes, limits.patience_s, address_remap)
    elif sentinels:
        servers = _sentinels(
            pool.connection_class, pool.connection_kwargs, sentinels, service_name, sentinel_kwargs or {}, limits
        )
    return _settings(servers, template.make, limits)


def by_client(client: Redis | RedisCluster) -> Settings:
    """As a client makes its connections, to the server, the cluster, or by the sentinels that it knows."""
    if isinstance(client, RedisCluster):
        theirs = client.connection_kwargs
        connection_class = theirs.get("connection_class", Connection)
        limits = _limits(theirs)
        startup_nodes = [Address(node.host, int(node.port)) for node in client.startup_nodes]
        cluster = Cluster(startup_nodes, limits.patience_s, client.nodes_manager.address_remap)
        return _settings(cluster, _Template(connection_class, _own(theirs, limits)).make, limits)
    pool = client.connection_pool
    theirs, limits = pool.connection_kwargs, _limits(pool.connection_kwargs)
    if isinstance(pool, SentinelConnectionPool):
        connection_class = SSLConnection if issubclass(pool.connection_class, SSLConnection) else Connection
        others = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
        servers: Servers = _sentinels(
            connection_class,
            theirs,
            [(options["host"], int(options["port"])) for options in others],
            pool.service_name,
            others[0],
            limits,
        )
        return _settings(servers, _Template(connection_class, _own(theirs, limits)).make, limits)
    template = _Template(pool.connection_class, _own(theirs, limits))
    return _settings(OneServer(template.address), template.make, limits)


def _settings(servers: Servers, make: Callable[[Address], AbstractConnection], limits: Limits) -> Settings:
    return Settings(servers, make, limits.max_connections, limits.connect_timeout_s, limits.timeout_s, set())


def _sentinels(
    connection_class: type[AbstractConnection],
    options: Mapping[str, Any],
    sentinels: Sequence[tuple[str, int]],
    service_name: str,
    sentinel_kwargs: Mapping[str, Any],
    limits: Limits,
) -> Sentinels:
    """Sentinels are reached as the server is, with credentials of their own, and have no databases."""
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    template = _Template(connection_class, _own({**tls, **sentinel_kwargs}, limits))
    return Sentinels([Address(*node) for node in sentinels], service_name, limits.patience_s, template.make)


def _check_cluster(options: Mapping[str, Any], sentinels: Sequence[object]) -> None:
    problem = None
    if sentinels:
        problem = "a cluster has no sentinels: use one of both"
    elif options.get("path"):
        problem = "the nodes of a cluster are reached by host and port, not by a socket"
    elif options.get("db"):
        problem = "a cluster has database 0 only"
    if problem is not None:
        raise InvalidError("URL", problem, field="url")


def _own(theirs: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    kept = {
        name: value for name, value in theirs.items() if not name.startswith(_OF_A_POOL) and name not in _OF_A_CLIENT
    }
    return kept | _OURS | {"socket_connect_timeout": limits.connect_timeout_s}


def _limits(theirs: Mapping[str, Any]) -> Limits:
    default = Limits()
    connect_timeout_s = theirs.get("socket_connect_timeout") or default.connect_timeout_s
    return Limits(connect_timeout_s, theirs.get("socket_timeout") or default.timeout_s)


def _as_redis(url: str, *, ssl: bool) -> str:
    """The URL in the client's own words."""
    for theirs, ours in (("valkeys://", "rediss://"), ("valkey://", "redis://")):
        if url.startswith(theirs):
            url = ours + url[len(theirs) :]
    return "rediss://" + url[len("redis://") :] if ssl and url.startswith("redis://") else url
