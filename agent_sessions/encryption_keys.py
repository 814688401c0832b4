"""Encryption keys as people write them: 32 bytes in base64."""

from __future__ import annotations

import base64
from collections.abc import Iterable

KEY_BYTES = 32


def decode_keys(texts: Iterable[str]) -> list[bytes]:
    """The keys, in their order. Standard and URL-safe base64 are read, with and without padding.

    Raises:
        ValueError: One is no base64, has not 32 bytes, or is there twice. The text says which one, and quotes nothing.
    """
    keys: list[bytes] = []
    for number, text in enumerate(texts, 1):
        key = _decoded(text)
        if key is None or len(key) != KEY_BYTES:
            found = "this is no base64" if key is None else f"these are {len(key)}"
            raise ValueError(f"key {number} is not {KEY_BYTES} bytes in base64: {found}")
        if key in keys:
            raise ValueError(f"key {number} is the same as key {keys.index(key) + 1}")
        keys.append(key)
    return keys


def _decoded(text: str) -> bytes | None:
    standard = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError:
        return None
