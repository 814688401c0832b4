"""The sections of Redis, which is reached in many ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from .fields import Count, Seconds, Section, TtlSeconds


def _node(text: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{text.strip()}")
    if not parts.hostname or parts.port == 0 or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError
    return parts.hostname, parts.port


def _nodes(given: object) -> object:
    nodes = [node for node in given.split(",") if node.strip()] if isinstance(given, str) else given
    if not isinstance(nodes, list | tuple):
        return given
    try:
        return tuple(_node(node) if isinstance(node, str) else node for node in nodes)
    except ValueError:  # its message would quote the node
        raise ValueError("nodes are written as host:port,host:port") from None


Nodes: TypeAlias = Annotated[tuple[tuple[str, int | None], ...], NoDecode, BeforeValidator(_nodes)]


class SentinelSettings(Section):
    """Redis Sentinel: the sentinels name the server, and another one when it fails."""

    nodes: Nodes = ()
    """The sentinels, as `host:port,host:port`; without a port it is 26379. Empty: there are none. With sentinels, host
    and port of the URL don't matter; its user, password and database, and whether it uses TLS, do."""

    service_name: str = Field("mymaster", pattern=r"^\S{1,128}$")
    """What the sentinels call the service: 1 to 128 characters without white space."""

    username: str | None = None
    """The user at the sentinels, which have users of their own."""

    password: SecretStr | None = None
    """The password at the sentinels. Never shown."""


class RedisSettings(Section):
    """Redis or Valkey, for `AK_SESSION__TYPE` `redis` and `valkey`.

    A password inside the URL is moved to `password`, so `url` is safe to show. `valkey://` and `valkeys://` are read
    as `redis://` and `rediss://`.
    """

    ssl: bool = False
    """Use TLS also where the URL says `redis://`. `rediss://` uses it anyway."""

    url: str = Field("redis://localhost:6379", validate_default=True, json_schema_extra={"secret": True})
    """Where the server is: `redis://[user[:password]@]host[:port][/database]`, `rediss://...` with TLS, or
    `unix://[user[:password]@]/path/to/socket`. Percent-encode what is special in a password."""

    password: SecretStr | None = None
    """The password, in place of one in the URL. Never shown."""

    prefix: str = Field("ak:sessions:", max_length=128, pattern=r"^[^\s{}\x00-\x1f\x7f]+$")
    """What every key starts with: 1 to 128 characters, without braces and white space."""

    ttl: TtlSeconds | None = None
    """Seconds, 0 to a century (0 = kept for ever), in place of `AK_SESSION__TTL` where the store is `redis` or
    `valkey`."""

    cluster: bool = False
    """Whether the URL is a node of a Redis Cluster. The other nodes are found by it."""

    startup_nodes: Nodes = ()
    """More nodes to find the cluster by when that of the URL is down, as `host:port,host:port`; without a port it is
    6379."""

    sentinel: SentinelSettings = Field(default_factory=SentinelSettings)
    """Redis Sentinel."""

    ssl_ca_certs: Path | None = None
    """A file with the certificates of the authorities that the server's certificate may come from. None: those that
    the system trusts."""

    ssl_certfile: Path | None = None
    """A file with the client's certificate, for a server that asks for one."""

    ssl_keyfile: Path | None = None
    """The file with the key of the client's certificate, if it is not in the same file."""

    ssl_check_hostname: bool = True
    """Whether the server's certificate must name the host that was asked for. On a cluster or with sentinels that is
    what the nodes announce, usually an IP address."""

    wait_replicas: Count = Field(0, le=100)
    """A commit, a change of a record or a deletion counts as stored only when so many replicas have it: 0 to 100. What
    they don't get in time is sent again for as long as a lease lasts; a turn then ends with `COMMIT_UNKNOWN`."""

    wait_timeout_s: Annotated[Seconds, Field(ge=0.001, le=60)] = 1.0
    """Seconds to wait for the replicas each time: 0.001 to 60."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> Self:
        encrypted = self.url.startswith("rediss://")
        problem = None
        if self.cluster and self.sentinel.nodes:
            problem = "a cluster has no sentinels: use AK_SESSION__REDIS__CLUSTER or AK_SESSION__REDIS__SENTINEL__NODES"
        elif self.cluster and self.url.startswith("unix://"):
            problem = "the nodes of a cluster are reached by host and port, not by a socket"
        elif self.cluster and urlsplit(self.url).path not in ("", "/", "/0"):
            problem = "a cluster has database 0 only"
        elif self.startup_nodes and not self.cluster:
            problem = "AK_SESSION__REDIS__STARTUP_NODES is for a cluster: set AK_SESSION__REDIS__CLUSTER=true"
        elif not encrypted and (self.ssl_ca_certs or self.ssl_certfile or self.ssl_keyfile):
            problem = "certificates are for TLS: the URL must start with rediss://, or set AK_SESSION__REDIS__SSL=true"
        elif self.ssl_keyfile and not self.ssl_certfile:
            problem = "AK_SESSION__REDIS__SSL_KEYFILE is the key of AK_SESSION__REDIS__SSL_CERTFILE, which is not set"
        if problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="before")
    @classmethod
    def _move_the_password_out_of_the_url(cls, data: Any) -> Any:
        if not (isinstance(data, Mapping) and isinstance(data.get("url"), str)):
            return data
        try:
            parts = urlsplit(data["url"])
        except ValueError:
            return data  # the URL's own check reports it
        if parts.password is None:
            return data
        place = parts.netloc.rpartition("@")[2]
        netloc = f"{parts.username}@{place}" if parts.username else place
        password = data.get("password")
        return {
            **data,
            "url": parts._replace(netloc=netloc).geturl(),
            "password": unquote(parts.password) if password is None else password,
        }

    @field_validator("url")
    @classmethod
    def _a_server_url(cls, url: str, info: ValidationInfo) -> str:
        try:
            parts = urlsplit(url)
            problem = _url_problem(parts)
        except ValueError:  # its message would quote the URL
            problem = "the host or the port can't be read"
        if problem:
            raise ValueError(f"{problem}: expected redis://[user[:password]@]host[:port][/database]")
        scheme = parts.scheme.replace("valkey", "redis")
        if info.data.get("ssl") and scheme == "redis":
            scheme = "rediss"
        return f"{scheme}{url[len(parts.scheme) :]}"


def _url_problem(parts: SplitResult) -> str | None:
    """What is wrong with a server URL, in words that quote nothing of it. Raises ValueError where even that is odd."""
    if parts.scheme not in ("redis", "rediss", "valkey", "valkeys", "unix"):
        return "the URL must start with redis://, rediss://, valkey://, valkeys:// or unix://"
    if parts.fragment or "@" in parts.path + parts.query:
        return "the URL has a #, a / or a ? inside the user or the password, which must be percent-encoded"
    if any(name == "password" for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        return "the URL has a password among its options; it belongs in AK_SESSION__REDIS__PASSWORD"
    if parts.scheme == "unix":
        return None if len(parts.path) > 1 else "the URL names no socket"
    if not parts.hostname or parts.port == 0:
        return "the URL names no host, or port 0"
    return None if re.fullmatch(r"/?\d*", parts.path) else "the database is not a number"
