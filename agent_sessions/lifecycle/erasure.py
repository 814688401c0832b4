"""Removing everything of a user."""

from __future__ import annotations

from dataclasses import dataclass, field

CACHED_S = 300
"""So long, at most, the cache of another process holds a copy of what was erased."""


@dataclass
class ErasureReceipt:
    """What an erasure removed, or would have."""

    user_id: str
    dry_run: bool
    session_ids: list[str] = field(default_factory=list)
    activation_ids: list[str] = field(default_factory=list)
    cached_copies_gone_within_s: int = CACHED_S

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {"sessions": len(self.session_ids), "activations": len(self.activation_ids)}
