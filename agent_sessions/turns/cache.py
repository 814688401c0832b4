"""The process-local cache of images. It is always checked against the store's version, so it is never stale."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakSet

from ..stores.base import Key
from ..sweeping import MOST_SECONDS, SWEEP_SECONDS, sweep_regularly
from .image import NOTHING, Image

_caches: WeakSet[ImageCache] = WeakSet()


class ImageCache:
    """Keeps the most recently checked images, bounded by their number, their bytes and their age. Thread-safe."""

    def __init__(
        self, size: int = 256, max_bytes: int = 64 * 2**20, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._size = size
        self._max_bytes = max_bytes
        self._clock = clock
        self._images: OrderedDict[Key, tuple[Image, int, float]] = OrderedDict()
        self._bytes = 0
        _caches.add(self)

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: Key) -> Image:
        """The image of a key; an empty one if there is none, or it was not checked for too long."""
        with self._lock:
            self._shrink()
            entry = self._images.get(key)
            return NOTHING if entry is None else entry[0]

    def put(self, key: Key, image: Image) -> None:
        """Keep an image that was checked just now."""
        with self._lock:
            self._drop(key)
            size = image.size
            if image.row is None or size > self._max_bytes:
                return
            self._images[key] = (image, size, self._clock())
            self._bytes += size
            self._shrink()
        sweep_regularly(self)

    def drop(self, key: Key) -> None:
        """Forget a key."""
        with self._lock:
            self._drop(key)

    def sweep(self) -> None:
        """Drop what would be too old before the next sweep."""
        with self._lock:
            self._shrink(SWEEP_SECONDS)

    def _shrink(self, ahead: float = 0.0) -> None:
        oldest_allowed = self._clock() + ahead - MOST_SECONDS
        while self._images:
            key, (_, _, checked) = next(iter(self._images.items()))
            if len(self._images) <= self._size and self._bytes <= self._max_bytes and checked > oldest_allowed:
                return
            self._drop(key)

    def _drop(self, key: Key) -> None:
        entry = self._images.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]


def _after_fork() -> None:
    for cache in list(_caches):  # whoever held a lock is not in this process
        cache._lock = threading.Lock()
        cache._images = OrderedDict()
        cache._bytes = 0


os.register_at_fork(after_in_child=_after_fork)
