"""A Redis Cluster of real nodes on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.redis_server import START_S, RedisServer

SLOTS = 16384


class RedisCluster:
    """Masters that share the slots evenly, and replicas if asked for. A node that dies is noticed soon."""

    def __init__(
        self, folder: Path, *options: str, masters: int = 3, replicas: int = 0, program: str = "redis-server"
    ) -> None:
        timeout_ms = 400 if replicas else 5000
        cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(timeout_ms))
        options = (*cluster, "--repl-diskless-sync-delay", "0", *options)
        self.nodes = []
        for number in range(masters * (1 + replicas)):
            (folder / str(number)).mkdir()
            self.nodes.append(RedisServer(folder / str(number), *options, program=program))
        self._masters = masters
        self._uses_tls = "--tls-cluster" in options

    @property
    def url(self) -> str:
        """Where the cluster is found: at its first node."""
        return self.nodes[0].url

    @property
    def startup_nodes(self) -> list[tuple[str, int]]:
        """Where else it is found."""
        return [("127.0.0.1", node.port) for node in self.nodes]

    def start(self) -> None:
        """Start it, and return when all of it is up."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_until_up()
        bounds = [SLOTS * number // self._masters for number in range(self._masters + 1)]
        masters, replicas = self.nodes[: self._masters], self.nodes[self._masters :]
        for epoch, (node, (first, end)) in enumerate(zip(masters, pairwise(bounds), strict=True), 1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.tls_port if self._uses_tls else node.port)
        wait_until(lambda: all(len(_nodes(node)) == len(self.nodes) for node in self.nodes))
        for number, node in enumerate(replicas):
            node.command("CLUSTER", "REPLICATE", masters[number % self._masters].raw("CLUSTER", "MYID"))
        wait_until(lambda: all(_is_ok(node) for node in self.nodes))
        if replicas:
            self.wait_until_whole()

    def stop(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill()

    def flush(self) -> None:
        """Remove all keys."""
        for node in self.masters():
            node.command("FLUSHALL")

    def masters(self) -> list[RedisServer]:
        """The nodes that have slots, by what one of them says."""
        node = next(node for node in self.nodes if node.is_running)
        return [self.at(master[1]) for _, _, master, *_ in self.map(node)]

    def map(self, node: RedisServer) -> list[Any]:
        """Slots as a node knows them: ranges with their master and its replicas."""
        ranges: list[Any] = node.raw("CLUSTER", "SLOTS")
        return ranges

    def at(self, port: int) -> RedisServer:
        """The node at a port."""
        return next(node for node in self.nodes if node.port == port)

    def wait_until_whole(self) -> None:
        """Return when all nodes agree on who is a master, and each of these has a replica in step."""

        def is_whole() -> bool:
            maps = {tuple(sorted((first, master[1]) for first, _, master, *_ in self.map(node))) for node in self.nodes}
            roles = {node.port: node.raw("ROLE") for node in self.masters()}
            if len(maps) > 1 or not all(role[0] == b"master" and role[2] for role in roles.values()):
                return False
            replicas = [node.raw("ROLE") for node in self.nodes if node.port not in roles]
            if not all(role[0] == b"slave" and role[3] == b"connected" for role in replicas):
                return False
            return roles.keys() == {role[2] for role in replicas if role[4] >= roles[role[2]][1]}

        wait_until(is_whole)

    def replica_of(self, master: RedisServer) -> RedisServer:
        """The replica of a master, as that knows it."""
        (_, (replica, *_)) = master.raw("ROLE")[1:]
        return self.at(int(replica[1]))

    def owner(self, key: bytes | str) -> RedisServer:
        """The node that has a key."""
        node = next(node for node in self.nodes if node.is_running)
        slot = int(node.raw("CLUSTER", "KEYSLOT", key))
        return next(self.at(master[1]) for first, last, master, *_ in self.map(node) if first <= slot <= last)

    def move_slot(self, slot: int, to: RedisServer, between: Callable[[], None] = lambda: None) -> None:
        """Move a slot to another node as redis-cli does, key by key."""
        source = next(self.at(master[1]) for first, last, master, *_ in self.map(to) if first <= slot <= last)
        there, here = to.raw("CLUSTER", "MYID"), source.raw("CLUSTER", "MYID")
        to.raw("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.raw("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        while names := source.raw("CLUSTER", "GETKEYSINSLOT", slot, 10):
            for name in names:
                between()
                source.raw("MIGRATE", "127.0.0.1", to.port, name, 0, 5000)
        between()
        for node in (to, source, *self.masters()):
            node.raw("CLUSTER", "SETSLOT", slot, "NODE", there)

    def keys(self, pattern: str = "*") -> list[bytes]:
        """All names of keys."""
        return [name for node in self.masters() for name in node.command("KEYS", pattern)]

    def command(self, name: str, key: str | bytes, *words: str | bytes | int) -> Any:
        """Send a command to the node that has the key."""
        return self.owner(key).command(name, key, *words)


def wait_until(is_so: Callable[[], bool], within_s: float = START_S) -> None:
    """Return when something is so; it is asked again and again."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def _nodes(node: RedisServer) -> list[bytes]:
    return [
        line for line in node.raw("CLUSTER", "NODES").splitlines() if b"handshake" not in line and b"noaddr" not in line
    ]


def _is_ok(node: RedisServer) -> bool:
    return b"cluster_state:ok" in node.raw("CLUSTER", "INFO")
