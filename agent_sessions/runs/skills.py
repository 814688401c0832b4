"""Skills: plain functions that agents call as tools, and that are told their session."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import InvalidError
from ..session import Session, current_session
from ..sync import SyncSession
from .context import observed_skill

F = TypeVar("F", bound=Callable[..., Any])


def skill(function: F) -> F:
    """Make a function a skill: a parameter annotated `Session`, or named `session_id`, is filled in when it is called.

    Such parameters are not in the signature that frameworks inspect, so no model is ever asked for them. A parameter
    annotated `SyncSession` gets the session's blocking half, for logs and collections in sync skills. Given by the
    caller, for example in a unit test, they are passed on as they are. The calls are recorded in the activation.

    Works with sync and async functions and methods, under every framework that builds its tools from functions.

    Raises:
        InvalidError: `INVALID_SKILL`: an injected parameter is positional-only.
    """
    injected = _injected(function)
    name = getattr(function, "__name__", type(function).__name__)
    wrapper = _async_wrapper if inspect.iscoroutinefunction(function) else _sync_wrapper
    made = wrapper(function, name, injected, _filled_in, observed_skill)
    # The wrapper lives in the function's own globals, so that annotations kept as text resolve as they would there.
    wrapped = types.FunctionType(
        made.__code__, getattr(function, "__globals__", {}), name, made.__defaults__, made.__closure__
    )
    wrapped.__kwdefaults__ = made.__kwdefaults__
    wrapped.__doc__ = function.__doc__
    wrapped.__module__ = function.__module__
    wrapped.__qualname__ = getattr(function, "__qualname__", name)
    wrapped.__dict__.update(getattr(function, "__dict__", {}))
    wrapped.__dict__.pop("__wrapped__", None)
    wrapped.__annotations__ = {
        key: value for key, value in getattr(function, "__annotations__", {}).items() if key not in injected
    }
    signature = inspect.signature(function)
    parameters = [parameter for key, parameter in signature.parameters.items() if key not in injected]
    wrapped.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return typing.cast(F, wrapped)


def _async_wrapper(function: Any, name: str, injected: Any, filled_in: Any, observed: Any) -> Any:
    async def call(*args, **kwargs):  # type: ignore[no-untyped-def]  # annotations are set by `skill`
        with observed(name):
            return await function(*args, **filled_in(injected, kwargs))

    return call


def _sync_wrapper(function: Any, name: str, injected: Any, filled_in: Any, observed: Any) -> Any:
    def call(*args, **kwargs):  # type: ignore[no-untyped-def]  # annotations are set by `skill`
        with observed(name):
            return function(*args, **filled_in(injected, kwargs))

    return call


def _filled_in(injected: dict[str, Callable[[], Any]], given: dict[str, Any]) -> dict[str, Any]:
    return {**{name: make() for name, make in injected.items() if name not in given}, **given}


def _injected(function: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name that resolves later, or never: go by the text
        hints = dict(getattr(function, "__annotations__", {}))
    injected: dict[str, Callable[[], Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        source = _source(name, hints.get(name))
        if source is None:
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise InvalidError("SKILL", f"parameter {name!r} can't be filled in: it is positional-only", field=name)
        injected[name] = source
    return injected


def _source(name: str, hint: Any) -> Callable[[], Any] | None:
    if name == "session_id":
        return lambda: current_session().id
    for kind, make in ((Session, current_session), (SyncSession, _sync_session)):
        if kind in (hint, *typing.get_args(hint)) or hint == kind.__name__:
            return make
    return None


def _sync_session() -> SyncSession:
    return SyncSession(current_session())
