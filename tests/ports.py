"""Free ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

_FIRST, _EACH = 10_000, 3_000
"""Each of three processes that share the tests has ports of its own, below those that the system gives away."""

_BUS = 10_000
"""So much higher is the second port of a node of a Redis Cluster."""


def free_port() -> int:
    """A free port on the loopback interface, of which the one 10,000 higher is free as well."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 3
    while True:
        port = _FIRST + process * _EACH + random.randrange(_EACH)
        with suppress(OSError), socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + _BUS))
            return port
