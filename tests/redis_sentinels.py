"""A Redis with a replica, and a sentinel that watches them."""

from __future__ import annotations

from pathlib import Path

from tests.redis_cluster import wait_until
from tests.redis_server import RedisServer

SERVICE = "sessions"


class Sentinel(RedisServer):
    """A sentinel. It notices within a third of a second that a server is gone."""

    def __init__(self, folder: Path, watched: RedisServer) -> None:
        super().__init__(folder)
        self._file = folder / "sentinel.conf"
        settings = {"down-after-milliseconds": 300, "failover-timeout": 2000, "parallel-syncs": 1}
        self._file.write_text(
            "\n".join(
                [
                    f"port {self.port}",
                    "bind 127.0.0.1",
                    f"dir {folder}",
                    f"sentinel monitor {SERVICE} 127.0.0.1 {watched.port} 1",
                    *(f"sentinel {name} {SERVICE} {value}" for name, value in settings.items()),
                    "",
                ]
            )
        )

    def _arguments(self) -> list[str]:
        return [str(self._file), "--sentinel"]


class WatchedRedis:
    """Two servers, of which one is the primary, and a sentinel: several would first elect one among them."""

    def __init__(self, folder: Path) -> None:
        folders = [folder / str(number) for number in range(3)]
        for one in folders:
            one.mkdir()
        at_once = ("--repl-diskless-sync-delay", "0")
        first = RedisServer(folders[0], *at_once)
        self.servers = [first, RedisServer(folders[1], *at_once, "--replicaof", f"127.0.0.1 {first.port}")]
        self.sentinel = Sentinel(folders[2], first)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the sentinels are."""
        return [("127.0.0.1", self.sentinel.port)]

    def start(self) -> None:
        """Start it, and return when everybody knows everybody."""
        for server in self.servers:
            server.start()
        wait_until(lambda: b"master_link_status:up" in self.servers[1].raw("INFO", "replication"))
        self.sentinel.start()
        wait_until(lambda: b"ok" in (self.sentinel.raw("SENTINEL", "REPLICAS", SERVICE) or [[]])[0])

    def stop(self) -> None:
        """Kill it."""
        for server in (*self.servers, self.sentinel):
            server.kill()

    def primary(self) -> RedisServer:
        """The server that the sentinel names."""
        _, port = self.sentinel.raw("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))
