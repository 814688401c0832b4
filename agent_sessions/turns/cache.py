"""The process-local cache of images. It is always checked against the store's version, so it is never stale."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from weakref import WeakSet

from ..stores.base import Key
from .image import NOTHING, Image

MOST_SECONDS = 300.0
"""An image not used for so long is dropped: what is erased elsewhere does not stay here."""

_caches: WeakSet[ImageCache] = WeakSet()


class ImageCache:
    """Keeps the most recently used images, bounded by their number and by their bytes. Thread-safe."""

    def __init__(self, size: int = 256, max_bytes: int = 64 * 2**20) -> None:
        self._lock = threading.Lock()
        self._size = size
        self._max_bytes = max_bytes
        self._images: OrderedDict[Key, tuple[Image, int, float]] = OrderedDict()
        self._bytes = 0
        _caches.add(self)

    def get(self, key: Key) -> Image:
        """The image of a key; an empty one if there is none."""
        with self._lock:
            entry = self._images.get(key)
            return NOTHING if entry is None else entry[0]

    def put(self, key: Key, image: Image) -> None:
        """Keep an image as the most recently used."""
        with self._lock:
            self._drop(key)
            size = image.size
            if image.row is None or size > self._max_bytes:
                return
            self._images[key] = (image, size, time.monotonic())
            self._bytes += size
            self._shrink()

    def drop(self, key: Key) -> None:
        """Forget a key."""
        with self._lock:
            self._drop(key)

    def _shrink(self) -> None:
        oldest_allowed = time.monotonic() - MOST_SECONDS
        while self._images:
            key, (_, _, used) = next(iter(self._images.items()))
            if len(self._images) <= self._size and self._bytes <= self._max_bytes and used >= oldest_allowed:
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
