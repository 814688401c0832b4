"""Where LangGraph's state is in a session: names of values and keys of entries, none of which meets another.

Keys are components joined by `/`. What belongs to one thread and namespace has the same *base*, `thread/ns/`, in all:
`c/base checkpoint`, `b/base channel/version`, `m/base chunk`, `w/base checkpoint/sequence`. In a component, `%` and `/`
are escaped as in URLs, and one that is too long for its place is replaced by its hash, marked by `%h`, which escaping
never makes.
"""

from __future__ import annotations

from hashlib import blake2b

NAMESPACE = "langgraph"
COLLECTION = "checkpoints"
HEADS = "head/"
CHECKPOINTS = "c/"
RUNS = "r/"

_ID_BYTES = 64
_THREAD_BYTES = 100
_NS_BYTES = 160
_CHANNEL_BYTES = 120
_NAME_BYTES = 128


def base_of(thread: str, ns: str) -> str:
    """The part that the keys of a thread's namespace have in common."""
    return f"{_part(thread, _THREAD_BYTES)}/{_part(ns, _NS_BYTES)}/"


def base_in(checkpoint: str) -> str:
    """The base in the key of a checkpoint."""
    return checkpoint.removeprefix(CHECKPOINTS).rpartition("/")[0] + "/"


def head_name(base: str) -> str:
    """The value that says which checkpoint is the latest."""
    return HEADS + (base if len(HEADS + base) <= _NAME_BYTES and base.isascii() else _hashed(base))


def thread_prefix(thread: str) -> str:
    """What the keys of all checkpoints of a thread begin with."""
    return f"{CHECKPOINTS}{_part(thread, _THREAD_BYTES)}/"


def checkpoint_prefix(base: str) -> str:
    """What the keys of all checkpoints of a namespace begin with."""
    return CHECKPOINTS + base


def checkpoint_key(base: str, checkpoint_id: str) -> str:
    """The entry of a checkpoint, without the values of its channels."""
    return CHECKPOINTS + base + _part(checkpoint_id, _ID_BYTES)


def blob_key(base: str, channel: str, version: str | int | float) -> str:
    """The entry of a channel's value at a version."""
    exact = _part(version, _ID_BYTES) if isinstance(version, str) else f"%{type(version).__name__[0]}{version!r}"
    return f"b/{base}{_part(channel, _CHANNEL_BYTES)}/{exact}"


def chunk_key(base: str, chunk_id: bytes) -> str:
    """The entry of some items of a list."""
    return f"m/{base}{chunk_id.hex()}"


def writes_key(base: str, checkpoint_id: str, sequence: str) -> str:
    """The entry of what one `put_writes` stored."""
    return writes_prefix(base, checkpoint_id) + sequence


def writes_prefix(base: str, checkpoint_id: str) -> str:
    """What the keys of all writes to a checkpoint begin with."""
    return f"w/{base}{_part(checkpoint_id, _ID_BYTES)}/"


def run_prefix(run_id: str) -> str:
    """What the keys of all marks of a run begin with."""
    return f"{RUNS}{_part(run_id, _ID_BYTES)}/"


def run_key(run_id: str, base: str) -> str:
    """The mark that a thread has checkpoints of a run."""
    return run_prefix(run_id) + base.partition("/")[0]


def _part(text: str, most: int) -> str:
    escaped = text.replace("%", "%25").replace("/", "%2F")
    length = len(escaped) if escaped.isascii() else len(escaped.encode(errors="surrogatepass"))
    return escaped if length <= most else _hashed(text)


def _hashed(text: str) -> str:
    return "%h" + blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
