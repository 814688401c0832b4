"""Whether a value is what the filter of a search asks for. As in LangGraph's own stores."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def passes(value: Mapping[str, Any], filter: Mapping[str, Any] | None) -> bool:
    """Whether the value has every field that the filter names, as the filter wants it."""
    return all(_is(value.get(name), wanted) for name, wanted in (filter or {}).items())


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        if any(name.startswith("$") for name in wanted):
            return all(_holds(value, name, operand) for name, operand in wanted.items())
        return isinstance(value, dict) and passes(value, wanted)
    if isinstance(wanted, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(wanted) and all(map(_is, value, wanted))
    return bool(value == wanted)


def _holds(value: Any, name: str, operand: Any) -> bool:
    if name == "$eq":
        return bool(value == operand)
    if name == "$ne":
        return bool(value != operand)
    if name not in _COMPARISONS:
        raise ValueError(f"Unsupported operator: {name}")
    return _compares(value, operand, _COMPARISONS[name])


def _compares(value: Any, operand: Any, comparison: Callable[[Any, Any], Any]) -> bool:
    """Compare as numbers, also texts that are some; else as they are, if they have an order."""
    try:
        return bool(comparison(float(value), float(operand)))
    except (TypeError, ValueError):
        pass
    try:
        return bool(comparison(value, operand))
    except TypeError:
        return False
