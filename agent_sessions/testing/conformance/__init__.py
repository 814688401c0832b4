"""The suite that every store passes: `agent_sessions.stores.base`, sentence by sentence.

```python
class TestMyStore(StoreConformance):
    def make_store(self, clock):
        return MyStore("my-backend://localhost", clock=clock)
```

It runs under pytest-asyncio with `asyncio_mode = "auto"`.
"""

from agent_sessions.testing.conformance.commits import Commits
from agent_sessions.testing.conformance.concurrency import Concurrency
from agent_sessions.testing.conformance.contents import Contents
from agent_sessions.testing.conformance.deltas import Deltas
from agent_sessions.testing.conformance.expiry import Expiry
from agent_sessions.testing.conformance.faults import LostReplies
from agent_sessions.testing.conformance.leases import Leases
from agent_sessions.testing.conformance.listing import Listing
from agent_sessions.testing.conformance.model import AnySequence

__all__ = ["LostReplies", "StoreConformance"]


class StoreConformance(Commits, Contents, Deltas, Leases, Expiry, Listing, Concurrency, AnySequence):
    """All chapters. A subclass defines `make_store`."""
