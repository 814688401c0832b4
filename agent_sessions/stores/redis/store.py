"""The store on Redis or Valkey: a warm turn is two scripts, one to open and one to commit.

Where things lie is in `common.lua`; the names of the keys in `keys.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from msgspec import structs
from redis.asyncio import Redis, RedisCluster

from agent_sessions.clock import Clock
from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    Amended,
    Commit,
    CommitStatus,
    Committed,
    Cursor,
    Key,
    Keys,
    Kind,
    Known,
    Lease,
    LeaseWanted,
    Opened,
    Order,
    Page,
    Version,
    Wanted,
)
from agent_sessions.stores.lifetime import Status
from agent_sessions.stores.redis import answers, registry, scripts
from agent_sessions.stores.redis import life as lives
from agent_sessions.stores.redis.cluster_indexes import ClusterIndexes
from agent_sessions.stores.redis.connections import (
    Clients,
    Cluster,
    Limits,
    LoopClient,
    Remap,
    by_client,
    by_url,
    clients,
)
from agent_sessions.stores.redis.indexes import Indexes, Listing, Stored
from agent_sessions.stores.redis.keys import Names, decode
from agent_sessions.stores.redis.refusals import (
    REFUSALS,
    raise_not_amended,
    raise_refused,
    state_lost,
    too_few_replicas,
    too_new,
    unsettled,
)
from agent_sessions.stores.redis.registry import Registries, Registry
from agent_sessions.stores.redis.scripts import Script

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_sessions.settings import Settings

LONG_LOG = 100
"""A log of which more items may be read than this is read beside the script instead of in it."""

_DECLARED_TRIES = 8
_NOW_OF_REDIS = -1
_TIMES_MOVED = 2
_PORT, _PORT_OF_SENTINELS = 6379, 26379

WAIT_TIMEOUT_S = 1.0
_LIMITS = Limits()


class RedisStore:
    """Keeps sessions in Redis or Valkey.

    Args:
        client: A client of your own, also of a cluster or made by sentinels, which says how to connect. The store opens
            connections of its own in that way, for each event loop that uses it, and leaves the client alone: it stays
            yours to use and to close.
        prefix: What the names of all keys begin with.
        clock: For tests; the server's own time if None.
        wait_replicas: A commit, an amendment or a deletion is stored only when so many replicas have it.
        wait_timeout_s: How long to wait for them each time, before it is sent again.
    """

    never_waits = False

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        prefix: str = "ak:sessions:",
        clock: Clock | None = None,
        wait_replicas: int = 0,
        wait_timeout_s: float = WAIT_TIMEOUT_S,
    ) -> None:
        self._set_up(by_client(client), prefix, clock, wait_replicas, wait_timeout_s)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "ak:sessions:",
        password: str | None = None,
        ssl: bool = False,
        cluster: bool = False,
        startup_nodes: Sequence[tuple[str, int]] = (),
        address_remap: Remap | None = None,
        sentinels: Sequence[tuple[str, int]] = (),
        service_name: str = "mymaster",
        sentinel_kwargs: Mapping[str, Any] | None = None,
        wait_replicas: int = 0,
        wait_timeout_s: float = WAIT_TIMEOUT_S,
        clock: Clock | None = None,
        connect_timeout_s: float = _LIMITS.connect_timeout_s,
        timeout_s: float = _LIMITS.timeout_s,
        max_connections: int = _LIMITS.max_connections,
        **options: Any,
    ) -> Self:
        """A store at a URL: `redis://`, `rediss://`, `valkey://`, `valkeys://` or `unix://`. It connects when used.

        Args:
            url: Where Redis is. User name, password and database may be in it.
            prefix: What the names of all keys begin with.
            password: The password, if it is not in the URL.
            ssl: Use TLS also if the URL does not say so.
            cluster: The URL is a node of a Redis Cluster, and the others are found by it.
            startup_nodes: Host and port of more nodes, to find the cluster by when that one is down.
            address_remap: For a cluster behind a proxy: where a node can be reached that the cluster knows by an
                address.
            sentinels: Host and port of sentinels, which name the server: that of the URL does not matter then, but its
                user, password, database and whether it uses TLS do.
            service_name: What the sentinels call it.
            sentinel_kwargs: Options for the connections to sentinels, such as `password`.
            wait_replicas: A commit, an amendment or a deletion is stored only when so many replicas have it.
            wait_timeout_s: How long to wait for them each time, before it is sent again.
            clock: For tests; the server's own time if None.
            connect_timeout_s: How long to wait for a connection.
            timeout_s: How long to wait for an answer.
            max_connections: The most connections of one event loop to a server. More turns at once share them.
            **options: More of a connection, by redis-py's names: `ssl_ca_certs`, `ssl_certfile`, `username`, ...

        Raises:
            InvalidError: The URL is none, or does not go with the options.
        """
        settings = by_url(
            url,
            password=password,
            ssl=ssl,
            cluster=cluster,
            startup_nodes=startup_nodes,
            address_remap=address_remap,
            sentinels=sentinels,
            service_name=service_name,
            sentinel_kwargs=sentinel_kwargs,
            limits=Limits(connect_timeout_s, timeout_s, max_connections),
            options=options,
        )
        store = cls.__new__(cls)
        store._set_up(settings, prefix, clock, wait_replicas, wait_timeout_s)
        return store

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The store that `AK_SESSION__REDIS__*` describes."""
        redis, sentinel = settings.redis, settings.redis.sentinel
        given = {
            "ssl_ca_certs": redis.ssl_ca_certs,
            "ssl_certfile": redis.ssl_certfile,
            "ssl_keyfile": redis.ssl_keyfile or redis.ssl_certfile,
        }
        options: dict[str, Any] = {name: str(path) for name, path in given.items() if path is not None}
        if redis.url.startswith("rediss://"):
            options["ssl_check_hostname"] = redis.ssl_check_hostname
        return cls.from_url(
            redis.url,
            prefix=redis.prefix,
            password=_secret(redis.password),
            ssl=redis.ssl,
            cluster=redis.cluster,
            startup_nodes=[(host, port or _PORT) for host, port in redis.startup_nodes],
            sentinels=[(host, port or _PORT_OF_SENTINELS) for host, port in sentinel.nodes],
            service_name=sentinel.service_name,
            sentinel_kwargs={"username": sentinel.username, "password": _secret(sentinel.password)},
            wait_replicas=redis.wait_replicas,
            wait_timeout_s=redis.wait_timeout_s,
            **options,
        )

    def _set_up(
        self, how: clients.Settings, prefix: str, clock: Clock | None, wait_replicas: int, wait_timeout_s: float
    ) -> None:
        self._names = Names(prefix)
        self._clock = clock
        self._clients = Clients(how, self._names.channel)
        self._indexes = Indexes(self._clients, self._names, self._now)
        if isinstance(how.servers, Cluster):
            self._indexes = ClusterIndexes(self._clients, self._names, self._now, how.servers)
        self._wait_replicas = wait_replicas
        self._waits = wait_replicas > 0
        self._wait_timeout_s = wait_timeout_s
        self._registries = Registries()

    # ------------------------------------------------------------------------------------------------- turns

    async def open(
        self,
        key: Key,
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 - frozen
        known: Known | None = None,
        lease: LeaseWanted | None = None,
    ) -> Opened:
        """See `Store.open`."""
        client = self._clients.current()
        if lease is None or not lease.queue:
            return (await self._open(client, key, wanted, known, lease, b""))[0]
        wakeups = client.wakeups
        channel = wakeups.channel
        if channel:
            wakeups.expect(lease.owner)
        opened, again_ms = await self._open(client, key, wanted, known, lease, channel)
        if not opened.granted and not channel:
            # The first to wait on this loop: its place in the queue is taken, now it gets a way to be woken.
            wakeups.expect(lease.owner)
            if await wakeups.listen():
                opened, again_ms = await self._open(client, key, wanted, known, lease, wakeups.channel)
        if opened.granted:
            wakeups.forget(lease.owner)
        else:
            wakeups.refused(lease.owner, again_ms)
        return opened

    async def _open(
        self,
        client: LoopClient,
        key: Key,
        wanted: Wanted,
        known: Known | None,
        lease: LeaseWanted | None,
        channel: bytes,
    ) -> tuple[Opened, int]:
        names = self._names.of(key)
        held = self._registries.get(names.main)
        call = scripts.pack_open(
            names, self._now(), wanted, known, lease, channel=channel, held=held, long_log=LONG_LOG
        )
        beside: list[Any] = []
        if call.beside:
            reply, beside = await client.run_beside(scripts.OPEN, call.keys, call.argv, call.beside)
        else:
            reply = await client.run(scripts.OPEN, call.keys, call.argv)
        if reply[0] == b"K":
            self._registries.forget(names.main)
            return await self._open(client, key, wanted, known, lease, channel)
        self._refuse_the_unreadable(key, reply)

        head = scripts.unpack_head(reply[0])
        taken = Lease(head.lease_owner or (lease.owner if lease else ""), head.lease_since, head.lease_until)
        if len(reply) == 1:
            refused = Opened(
                now=head.now, version=ABSENT, row=None, lease=taken if head.held else None, waiters=head.waiters
            )
            return refused, head.again_ms

        _, packed, fields, values, logs, entries, ranges = reply
        if not head.exists:
            has = Registry(ABSENT, b"", b"", {}, {}, {})
            self._registries.forget(names.main)
        elif packed is not None:
            has = registry.unpack(head.version, head.life, head.belongs_to, packed)
            self._registries.keep(names.main, has)
        else:
            assert held is not None
            has = held
            if held.life != head.life:
                self._registries.keep(names.main, structs.replace(held, life=head.life))
        heads = has.heads()
        opened = Opened(
            now=head.now,
            version=head.version,
            row=head.row(None if fields is None else scripts.unpack_fields(fields)) if head.exists else None,
            granted=head.granted,
            lease=taken if head.held else None,
            waiters=head.waiters,
            continues=head.continues,
            values=answers.values(head, call, values, beside),
            log_heads=heads,
            collections=has.revisions(),
            logs=answers.logs(wanted, call, heads, logs, beside),
            entries=entries,
            ranges=[[(decode(name), value) for name, value in scripts.pairs(flat)] for flat in ranges],
        )
        return opened, 0

    async def commit(self, key: Key, commit: Commit) -> Committed:
        """See `Store.commit`."""
        if len(commit.id) != 8:
            raise ValueError("a commit id has 8 bytes")
        moves = not commit.maintenance or commit.belongs_to is not None  # it gets a place, or another one
        if self._indexes.are_elsewhere and moves:
            held = self._registries.get(self._names.of(key).main)
            return await self._indexes.along(key, commit, held, partial(self._commit, key, commit))
        stored = await self._commit(key, commit, False)
        assert stored is not None
        if commit.hold_ms is not None:
            await self._indexes.changed(key)
        return stored.committed

    async def _commit(self, key: Key, commit: Commit, must_exist: bool) -> Stored | None:
        """Commit, indexes aside if they are elsewhere. None: it was to exist, and does not."""
        names, elsewhere = self._names.of(key), self._indexes.are_elsewhere
        for _ in range(_DECLARED_TRIES):
            held = self._registries.get(names.main)
            keys, argv = scripts.pack_commit(
                names, self._now(), commit, held, elsewhere=elsewhere, must_exist=must_exist, waits=self._waits
            )
            reply = await self._write(scripts.COMMIT, keys, argv)
            if reply[0] == b"K":
                self._registries.keep(names.main, answers.declared(reply))
                continue
            if reply[0] == b"A":
                self._registries.forget(names.main)
                return None
            self._refuse_the_unreadable(key, reply)
            if reply[0] == b"R":
                return Stored(answers.repeated(commit, int(reply[1])), b"")
            raise_refused(key, commit, reply)
            stored = scripts.unpack_stored(reply[0], commit.id)
            since = stored.version, stored.life, stored.belongs_to, reply[1]
            if held is not None and held.version == stored.previous:
                self._registries.keep(names.main, held.after(*since))
            elif stored.previous == ABSENT:
                self._registries.keep(names.main, registry.unpack(*since))
            else:
                self._registries.forget(names.main)
            heads = registry.log_heads(reply[1])
            committed = Committed(stored.version, stored.previous, stored.row, stored.previous_tag, heads)
            return Stored(committed, stored.life)
        raise unsettled(key)

    async def amend(self, key: Key, amend: Amend) -> Amended:
        """See `Store.amend`."""
        if len(amend.id) != 8:
            raise ValueError("the id of an amendment has 8 bytes")
        names = self._names.of(key)
        held = self._registries.get(names.main)
        for _ in range(_DECLARED_TRIES):
            declared = self._declares(held)
            argv = scripts.pack_amend(names, self._now(), amend, declared, waits=self._waits)
            reply = await self._write(scripts.AMEND, scripts.all_keys(names, held, declared), argv)
            if reply[0] == b"K":
                held = answers.declared(reply)
                continue
            self._refuse_the_unreadable(key, reply)
            raise_not_amended(key, reply)
            now, changed, revision, life, counters, tag, belongs_to, flat = reply
            whose = belongs_to or b""
            known = self._registries.get(names.main)
            if known is not None and known.life:
                self._registries.keep(names.main, structs.replace(known, life=life, belongs_to=whose))
            await self._indexes.amended(key, life, whose)
            row = lives.row(life, counters, whose, tag, scripts.unpack_fields(flat))
            return Amended(int(now), row, bool(changed), int(revision))
        raise unsettled(key)

    async def commit_status(self, key: Key, commit_id: bytes, *, since: Version) -> CommitStatus:
        """See `Store.commit_status`."""
        arguments = [scripts.pack_status(self._now(), commit_id, since)]
        reply: bytes = await self._run(scripts.STATUS, [self._names.of(key).main], arguments)
        status: dict[bytes, CommitStatus] = {b"stored": "stored", b"not_stored": "not_stored", b"unknown": "unknown"}
        return status[reply]

    # ------------------------------------------------------------------------------------------------- leases

    async def renew(self, key: Key, owner: str, ms: int) -> bool:
        """See `Store.renew`."""
        names = self._names.of(key)
        keys, declared = [names.main], b""
        for _ in range(_DECLARED_TRIES):
            arguments = [scripts.pack_renew(self._now(), ms, owner, declared, names.member)]
            reply = await self._run(scripts.RENEW, keys, arguments)
            if reply[0] != b"K":
                if reply[0] == _TIMES_MOVED:
                    await self._indexes.changed(key)
                return bool(reply[0])
            held = answers.declared(reply)
            declared = self._declares(held)
            keys = scripts.all_keys(names, held, declared)
        raise unsettled(key)

    async def release(self, key: Key, owner: str) -> None:
        """See `Store.release`."""
        self._clients.current().wakeups.forget(owner)
        await self._run(scripts.RELEASE, [self._names.of(key).main], [scripts.pack_owner(self._now(), owner)])

    async def unlock(self, key: Key) -> Lease | None:
        """See `Store.unlock`."""
        reply = await self._run(scripts.UNLOCK, [self._names.of(key).main], [scripts.pack_now(self._now())])
        return Lease(decode(reply[0]), int(reply[1]), int(reply[2])) if reply else None

    async def wait(self, key: Key, owner: str, seconds: float) -> None:
        """See `Store.wait`. Returns after a second at the latest: asking again keeps the place in the queue."""
        await self._clients.current().wakeups.wait(owner, seconds)

    # ------------------------------------------------------------------------------------------------- lifecycle

    async def delete(self, key: Key, write_id: bytes) -> bool:
        """See `Store.delete`."""
        names = self._names.of(key)
        held = self._registries.get(names.main)
        for _ in range(_DECLARED_TRIES):
            declared = self._declares(held)
            belongs_to = held.belongs_to if held is not None else b""
            argv = scripts.pack_delete(self._now(), declared, belongs_to, names.member, waits=self._waits)
            keys = [*scripts.all_keys(names, held, declared), names.tombstone(write_id)]
            reply = await self._write(scripts.DELETE, keys, [argv])
            if reply[0] != b"K":
                self._registries.forget(names.main)
                existed, started_at = reply
                await self._indexes.left(key, bool(existed), int(started_at), belongs_to)
                return bool(existed)
            held = answers.declared(reply)
            self._registries.keep(names.main, held)  # who repeats it knows what is to go
        raise unsettled(key)

    async def find(
        self,
        tenant: str,
        kind: Kind,
        *,
        belongs_to: str | None = None,
        status: Status | None = None,
        order: Order = "activity",
        limit: int = 50,
        cursor: Cursor | None = None,
    ) -> Page:
        """See `Store.find`."""
        return await self._indexes.find(Listing(tenant, kind, belongs_to, status, order), limit, cursor)

    async def count(
        self, tenant: str, kind: Kind, *, belongs_to: str | None = None, status: Status | None = None
    ) -> int:
        """See `Store.count`."""
        return await self._indexes.count(Listing(tenant, kind, belongs_to, status))

    async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
        """See `Store.run_out`."""
        return await self._indexes.run_out(Listing(tenant, kind), limit)

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        """See `Store.scan`. A session that has lost its places in the listings has them again afterwards."""
        return await self._indexes.scan(limit, cursor)

    async def detach(self) -> None:
        """See `Store.detach`."""
        await self._clients.detach()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._clients.aclose()

    # ------------------------------------------------------------------------------------------------- helpers

    def _now(self) -> int:
        return _NOW_OF_REDIS if self._clock is None else self._clock.now_ms()

    async def _run(self, script: Script, keys: list[bytes], arguments: list[bytes]) -> Any:
        return await self._clients.current().run(script, keys, arguments)

    async def _write(self, script: Script, keys: list[bytes], arguments: list[bytes]) -> Any:
        """Run a script, and see that enough replicas have what it stored, now or before."""
        if not self._waits:
            return await self._run(script, keys, arguments)
        client, wanted = self._clients.current(), self._wait_replicas
        reply, reached = await client.run_and_wait(script, keys, arguments, wanted, self._wait_timeout_s)
        if reply[0] not in REFUSALS and reached < wanted:
            raise too_few_replicas(reached, wanted)
        return reply

    def _declares(self, held: Registry | None) -> bytes:
        """Whose indexes are declared to a script."""
        if self._indexes.are_elsewhere:
            return scripts.ELSEWHERE
        return held.belongs_to if held is not None else b""

    def _refuse_the_unreadable(self, key: Key, reply: list[Any]) -> None:
        if reply[0] == b"F":
            raise too_new(key, int(reply[1]))
        if reply[0] == b"L":
            self._registries.forget(self._names.of(key).main)
            raise state_lost(key, reply[1])


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
