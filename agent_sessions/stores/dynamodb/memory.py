"""What a store remembers of the keys that it last worked on."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """A dictionary for all threads that forgets what was kept the longest ago.

    It has no lock, which a fork could leave locked: each step is one that the interpreter does at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """What is remembered."""
        return self._kept.get(key)

    def keep(self, key: K, value: V) -> None:
        """Remember."""
        self._kept.pop(key, None)
        self._kept[key] = value
        if len(self._kept) > self._size:
            try:
                self.forget(next(iter(self._kept)))
            except RuntimeError:  # another thread was in between; it did the same
                return

    def forget(self, key: K) -> None:
        """Forget."""
        self._kept.pop(key, None)
