"""Where LangGraph's state is in a session: names of values and keys of entries, none of which meets another.

Keys are components joined by `/`: `c/thread/ns/checkpoint`, `b/thread/ns/channel/version`,
`w/thread/ns/checkpoint/sequence`. In a component, `%` and `/` are escaped as in URLs, and one that is too long for its
place is replaced by its hash, marked by `%h`, which escaping never makes.
"""

from __future__ import annotations

from hashlib import blake2b

NAMESPACE = "langgraph"
COLLECTION = "checkpoints"
HEADS = "head/"

_ID_BYTES = 64
_THREAD_BYTES = 100
_NS_BYTES = 160
_CHANNEL_BYTES = 120
_HEAD_PART_BYTES = 60


def head_name(thread: str, ns: str) -> str:
    """The value that says which checkpoint is the latest."""
    return f"{HEADS}{_part(thread, _HEAD_PART_BYTES)}/{_part(ns, _HEAD_PART_BYTES)}"


def checkpoint_key(thread: str, ns: str, checkpoint_id: str) -> str:
    """The entry of a checkpoint, without the values of its channels."""
    return checkpoint_prefix(thread, ns) + _part(checkpoint_id, _ID_BYTES)


def checkpoint_prefix(thread: str, ns: str | None = None) -> str:
    """What the keys of all checkpoints of a namespace, or of a thread, begin with."""
    return f"c/{_part(thread, _THREAD_BYTES)}/" + ("" if ns is None else f"{_part(ns, _NS_BYTES)}/")


def blob_key(thread: str, ns: str, channel: str, version: str | int | float) -> str:
    """The entry of a channel's value at a version."""
    exact = _part(version, _ID_BYTES) if isinstance(version, str) else f"%{type(version).__name__[0]}{version!r}"
    return f"b/{_part(thread, _THREAD_BYTES)}/{_part(ns, _NS_BYTES)}/{_part(channel, _CHANNEL_BYTES)}/{exact}"


def writes_key(thread: str, ns: str, checkpoint_id: str, sequence: str) -> str:
    """The entry of what one `put_writes` stored."""
    return writes_prefix(thread, ns, checkpoint_id) + sequence


def writes_prefix(thread: str, ns: str, checkpoint_id: str) -> str:
    """What the keys of all writes to a checkpoint begin with."""
    return f"w/{_part(thread, _THREAD_BYTES)}/{_part(ns, _NS_BYTES)}/{_part(checkpoint_id, _ID_BYTES)}/"


def _part(text: str, most: int) -> str:
    escaped = text.replace("%", "%25").replace("/", "%2F")
    length = len(escaped) if escaped.isascii() else len(escaped.encode(errors="surrogatepass"))
    return escaped if length <= most else _hashed(text)


def _hashed(text: str) -> str:
    return "%h" + blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
