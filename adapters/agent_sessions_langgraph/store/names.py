"""How namespaces and items are called in a store.

A namespace is a key of the kind `app`, and an item an entry of a collection of it. Another key, the index, has an entry
for each namespace: its labels, each closed by a NUL, which no label contains. So the order of entries is that of
namespaces, and what begins with the entry of one is that one and what lies under it.

Names that are too long for an entry are cut, and end with their hash.
"""

from __future__ import annotations

from hashlib import blake2b

from langgraph.store.base import (
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchOp,
    validate_op_namespace,
)

from agent_sessions.errors import InvalidError
from agent_sessions.stores.base import Key

Namespace = tuple[str, ...]

_ROOT = "langgraph.store"
_RESERVED = "langgraph"
_LONGEST_PATH = 200
_LONGEST_ENTRY = 400


def index_key(tenant: str) -> Key:
    """The key of the index of a tenant's namespaces."""
    return Key(tenant, "app", _ROOT)


def namespace_key(tenant: str, namespace: Namespace) -> Key:
    """The key of a namespace."""
    path = ".".join(namespace)
    return Key(tenant, "app", f"{_ROOT}/{path}" if len(path) <= _LONGEST_PATH else f"{_ROOT}#{_hash(path)}")


def index_entry(namespace: Namespace) -> str:
    """A namespace's entry in the index."""
    spelt = _spelt(namespace)
    cut = _cut(spelt)
    return spelt if cut == spelt else cut + _hash(spelt)


def scattered_entry(namespace: Namespace) -> str:
    """A namespace's entry in the order of hashes."""
    return _hash(_spelt(namespace))


def index_prefix(namespace: Namespace) -> str:
    """What the entries of a namespace and of all that lie under it begin with, and perhaps others."""
    return _cut(_spelt(namespace))


def item_entry(key: str) -> str:
    """An item's entry in the collections of its namespace."""
    cut = _cut(key)
    return f"={key}" if cut == key else f"~{cut}{_hash(key)}"


def literal_prefix(conditions: tuple[MatchCondition, ...]) -> Namespace:
    """The longest beginning, without wildcards, that every namespace has which the conditions match."""
    longest: Namespace = ()
    for condition in conditions:
        if condition.match_type == "prefix":
            end = condition.path.index("*") if "*" in condition.path else len(condition.path)
            longest = max(longest, tuple(condition.path[:end]), key=len)
    return longest


def matches(namespace: Namespace, condition: MatchCondition) -> bool:
    """Whether a namespace begins, or ends, as the condition says; `*` is any one label."""
    path = tuple(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"Unsupported match type: {condition.match_type}")
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))


def check(op: Op) -> None:
    """Check the names in an operation by LangGraph's rules, whichever way it came.

    Raises:
        InvalidNamespaceError: A label is empty, no string, or has a period; or an item is put where none may be.
        InvalidError: `INVALID_KEY`: the key is no string, or no valid Unicode.
    """
    validate_op_namespace(op)
    if isinstance(op, ListNamespacesOp):
        labels = [label for condition in op.match_conditions or () for label in condition.path]
    elif isinstance(op, SearchOp):
        labels = list(op.namespace_prefix)
    else:
        labels = list(op.namespace)
        key: object = op.key
        if not isinstance(key, str) or not _is_unicode(key):
            raise InvalidError("KEY", "the key of an item must be a string of valid Unicode", field="key")
    if not all(_is_unicode(label) and "\0" not in label for label in labels):
        raise InvalidNamespaceError("Namespace labels must be valid Unicode, without lone surrogates and NUL.")
    if isinstance(op, PutOp) and op.value is not None:
        if not op.namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if op.namespace[0] == _RESERVED:
            raise InvalidNamespaceError(f'Root label for namespace cannot be "{_RESERVED}".')


def _spelt(namespace: Namespace) -> str:
    return "".join(f"{label}\0" for label in namespace)


def _cut(text: str) -> str:
    return text.encode()[:_LONGEST_ENTRY].decode(errors="ignore")


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
