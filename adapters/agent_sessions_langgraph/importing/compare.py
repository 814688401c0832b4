"""Whether a checkpoint that is stored here is the one of the source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple, PendingWrite
from langgraph.checkpoint.serde.base import SerializerProtocol

from .source import Original

WRITES = "the pending writes"


class Comparison:
    """Compares by value and type; what does not say when it equals another, by its encoding."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def difference(self, original: Original, stored: CheckpointTuple) -> str | None:
        """The first part of a checkpoint that is not the same here. None: all of it is."""
        checkpoint, found = dict(original.checkpoint), dict(stored.checkpoint)
        values, values_found = checkpoint.pop("channel_values"), found.pop("channel_values")
        parent = (stored.parent_config or {}).get("configurable", {}).get("checkpoint_id")
        if parent != original.parent:
            return "the parent"
        if not self.same(dict(original.metadata), dict(stored.metadata)):
            return "the metadata"
        if not self.same(checkpoint, found):
            return "the versions of channels"
        if not self.same(values, values_found):
            return "the values of channels"
        writes = self._writes(original)
        if not self.same(writes, list(stored.pending_writes or ())):
            return WRITES
        return None

    def has_all_writes(self, original: Original, stored: CheckpointTuple) -> bool:
        """Whether all writes of the source are here, perhaps with more."""
        return self._among(self._writes(original), stored.pending_writes or ())

    def adds_writes(self, original: Original, stored: CheckpointTuple) -> bool:
        """Whether all writes that are here are at the source too, with more."""
        return self._among(stored.pending_writes or (), self._writes(original))

    def _among(self, some: Iterable[PendingWrite], all_of_them: Iterable[PendingWrite]) -> bool:
        rest = iter(all_of_them)
        return all(any(self.same(write, one) for one in rest) for write in some)

    def _writes(self, original: Original) -> list[PendingWrite]:
        return [(write.task_id, write.channel, write.value) for write in original.writes]

    def same(self, one: Any, other: Any) -> bool:
        """Whether two values are the same, all through."""
        if type(one) is not type(other):
            return False
        if isinstance(one, Mapping):
            return one.keys() == other.keys() and all(self.same(value, other[key]) for key, value in one.items())
        if isinstance(one, Sequence) and not isinstance(one, (str, bytes, bytearray)):
            return len(one) == len(other) and all(map(self.same, one, other))
        try:
            return bool(one == other) or self._encoded(one) == self._encoded(other)
        except Exception:  # arrays, which don't equal anything as a whole
            return self._encoded(one) == self._encoded(other)

    def _encoded(self, value: Any) -> tuple[str, bytes]:
        return self._serde.dumps_typed(value)
