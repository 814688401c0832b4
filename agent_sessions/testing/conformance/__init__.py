"""The suite that every store passes: `agent_sessions.stores.base`, sentence by sentence.

```python
class TestMyStore(StoreConformance):
    def make_store(self, clock):
        return MyStore("my-backend://localhost", clock=clock)
```

A store that keeps its waiters in a queue adds the chapter `ServedInOrder`; one on the other side of a wire, of which
a test can cut the connection, `LostReplies`. It runs under pytest-asyncio with `asyncio_mode = "auto"`.
"""

from agent_sessions.testing.conformance.commits import Commits
from agent_sessions.testing.conformance.concurrency import Concurrency
from agent_sessions.testing.conformance.contents import Contents
from agent_sessions.testing.conformance.deltas import Deltas
from agent_sessions.testing.conformance.expiry import Expiry
from agent_sessions.testing.conformance.faults import LostReplies
from agent_sessions.testing.conformance.leases import Leases
from agent_sessions.testing.conformance.lifecycle import Lifecycle
from agent_sessions.testing.conformance.listing import Listing
from agent_sessions.testing.conformance.maintenance import Maintenance
from agent_sessions.testing.conformance.model import AnySequence
from agent_sessions.testing.conformance.queue import ServedInOrder

__all__ = ["LostReplies", "ServedInOrder", "StoreConformance"]


class StoreConformance(
    Commits, Contents, Deltas, Leases, Expiry, Lifecycle, Listing, Maintenance, Concurrency, AnySequence
):
    """What every store has to pass. A subclass defines `make_store`."""
