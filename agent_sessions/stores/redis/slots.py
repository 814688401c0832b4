"""The slots of a Redis Cluster (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""

from __future__ import annotations

from binascii import crc_hqx
from itertools import count

SLOTS = 16384

_tags: dict[int, bytes] = {}
_numbers = count()


def slot_of(key: bytes) -> int:
    """The slot of a key: that of what stands in its first braces, if it has any."""
    opening = key.find(b"{")
    if opening >= 0:
        closing = key.find(b"}", opening + 1)
        if closing > opening + 1:
            key = key[opening + 1 : closing]
    return crc_hqx(key, 0) % SLOTS


def tag_beside(key: bytes) -> bytes:
    """A number to put in braces: a key with it lies in the slot of another, and tells nothing of that one.

    Numbers are tried until one fits, and kept: 60 ms for all slots together.
    """
    slot = slot_of(key)
    while slot not in _tags:
        number = b"%d" % next(_numbers)
        _tags.setdefault(slot_of(number), number)
    return _tags[slot]
