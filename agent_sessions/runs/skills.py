"""Skills: plain functions that agents call as tools, and that are told their session."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
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
    signature = inspect.signature(function)
    made = wrapper(function, name, _Filling(signature, injected), observed_skill)
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
    parameters = [parameter for key, parameter in signature.parameters.items() if key not in injected]
    wrapped.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return typing.cast(F, wrapped)


def _async_wrapper(function: Any, name: str, filled_in: Any, observed: Any) -> Any:
    async def call(*args, **kwargs):  # type: ignore[no-untyped-def]  # annotations are set by `skill`
        with observed(name):
            args, kwargs = filled_in(args, kwargs)
            return await function(*args, **kwargs)

    return call


def _sync_wrapper(function: Any, name: str, filled_in: Any, observed: Any) -> Any:
    def call(*args, **kwargs):  # type: ignore[no-untyped-def]  # annotations are set by `skill`
        with observed(name):
            args, kwargs = filled_in(args, kwargs)
            return function(*args, **kwargs)

    return call


_MISSING: Any = object()


class _Filling:
    """Puts what is injected into a call's arguments, where the caller has not given it."""

    def __init__(self, signature: inspect.Signature, injected: dict[str, Callable[[], Any]]) -> None:
        self._injected = injected
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._positional = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]
        self._shown = sum(name not in injected for name in self._positional)
        self._takes_more = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in signature.parameters.values())

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        given = self._positional[: len(args)] if self._gives_all(args) else ()
        filled = {name: kwargs.get(name, _MISSING) for name in self._injected if name not in given}
        values = {name: self._injected[name]() if value is _MISSING else value for name, value in filled.items()}
        if given or not args:
            return args, kwargs | values
        # Arguments in the order of the signature that callers see: the injected ones go in between.
        left, ordered = list(args), []
        for name in self._positional:
            if not left:
                break
            if name in values:
                ordered.append(values.pop(name))
                kwargs.pop(name, None)
            else:
                ordered.append(left.pop(0))
        return [*ordered, *left], kwargs | values

    def _gives_all(self, args: tuple[Any, ...]) -> bool:
        """Whether these are arguments for the function as it is written, as a unit test passes them."""
        if any(isinstance(one, Session | SyncSession) for one in args):
            return True
        return len(args) > self._shown and not self._takes_more


def _injected(function: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name that resolves later, or never: go by the text
        hints = {}
    injected: dict[str, Callable[[], Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        source = _source(name, hints.get(name, parameter.annotation))
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
        if kind in _alternatives(hint):
            return make
    return None


def _alternatives(hint: Any) -> Sequence[Any]:
    """The types of a union, or the one that it is; of an annotation that can't be resolved, by their names."""
    if isinstance(hint, str):
        kinds = {
            f"{prefix}{kind.__name__}": kind for kind in (Session, SyncSession) for prefix in ("", "agent_sessions.")
        }
        optional = re.fullmatch(r"(?:\w+\.)*Optional\[(.*)\]", hint.strip("'\" "))
        names = (optional.group(1) if optional else hint).split("|")
        return [kinds.get(name.strip("'\" ").removeprefix("agent_sessions.")) for name in names]
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _sync_session() -> SyncSession:
    return SyncSession(current_session())
