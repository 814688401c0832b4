"""Redis Cluster: which node has which slot (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import shuffle
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from agent_sessions.stores.redis.connections.failures import NoPrimaryError, WrongServersError, will_pass
from agent_sessions.stores.redis.connections.servers import Address, Ask
from agent_sessions.stores.redis.slots import SLOTS, slot_of

Remap = Callable[[tuple[str, int]], tuple[str, int]]
"""Where a node can be reached that the cluster knows by an address."""


def claimed_slots(nodes: bytes) -> set[int]:
    """The slots of a node, those that it is about to get included, as its CLUSTER NODES says."""
    (own,) = [line for line in nodes.split(b"\n") if b"myself" in line]
    claimed: set[int] = set()
    for words in own.split()[8:]:
        if (coming := re.match(rb"\[(\d+)-<-", words)) is not None:
            claimed.add(int(coming[1]))
        elif not words.startswith(b"["):
            first, _, last = words.partition(b"-")
            claimed.update(range(int(first), int(last or first) + 1))
    return claimed


class Cluster:
    """The nodes of a cluster, and who has which slot, as far as is known."""

    def __init__(self, startup_nodes: Sequence[Address], patience_s: float, address_remap: Remap | None = None) -> None:
        self.patience_s = patience_s
        self.all: list[Address] = []
        self._startup_nodes = list(dict.fromkeys(startup_nodes))
        self._address_remap = address_remap
        self._replicas: list[Address] = []
        self._owners: list[Address | None] = [None] * SLOTS

    @property
    def where(self) -> str:
        """See `Servers.where`."""
        return f"the Redis cluster at {', '.join(map(str, self._startup_nodes))}"

    def of(self, key: bytes) -> Address | None:
        """See `Servers.of`."""
        return self._owners[slot_of(key)]

    def owner(self, slot: int) -> Address | None:
        """Who has a slot."""
        return self._owners[slot]

    async def find_out(self, ask: Ask, missed: Address | None) -> None:
        """See `Servers.find_out`. Any node can tell, but one cut off from the rest tells old news."""
        known = [*self.all, *self._replicas]
        shuffle(known)
        nodes = [node for node in dict.fromkeys([*known, *self._startup_nodes]) if node != missed]
        failure: Exception | None = None
        for node in [*nodes, missed] if missed is not None else nodes:
            try:
                ranges = await ask(node, (b"CLUSTER", b"SLOTS"))
            except (RedisError, OSError) as error:
                if "cluster support disabled" in str(error):
                    raise WrongServersError("this Redis is no cluster") from error
                failure = error
            else:
                if ranges:
                    self._learn(ranges, node)
                    return
        if failure is not None and not will_pass(failure):
            raise failure
        raise NoPrimaryError(f"no node of {self.where} can be reached") from failure

    def _learn(self, ranges: list[Any], by: Address) -> None:
        owners: list[Address | None] = [None] * SLOTS
        masters: dict[Address, None] = {}
        replicas: dict[Address, None] = {}
        for first, last, master, *others in ranges:
            owner = self._address(master, by)
            masters[owner] = None
            owners[first : last + 1] = [owner] * (last + 1 - first)
            replicas.update((self._address(other, by), None) for other in others)
        self.all, self._replicas, self._owners = list(masters), list(replicas), owners

    def _address(self, node: list[Any], by: Address) -> Address:
        host, port = node[0], node[1]
        return self.resolved("" if host is None else host.decode(), int(port), by)

    def resolved(self, host: str, port: int, by: Address) -> Address:
        """See `Servers.resolved`. A node that does not know its own name leaves it out: it is where it was reached."""
        address = (host if host not in ("", "?") else by.host, port)
        return Address(*(self._address_remap(address) if self._address_remap is not None else address))

    def moved(self, key: bytes, to: Address) -> None:
        """See `Servers.moved`."""
        self._owners[slot_of(key)] = to
        if to not in self.all:
            self.all = [*self.all, to]

    async def check(self, connection: AbstractConnection) -> None:
        """See `Servers.check`. A node redirects whoever is wrong there."""
