"""Who is asking: the identity that a request acts with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .errors import ForbiddenError
from .identifiers import check_id


@dataclass(frozen=True)
class AuthContext:
    """An identity, as the application's own authentication found it.

    Raises:
        InvalidError: An id is wrong; `field` names it.
    """

    user_id: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    """The session that the request came with. It is only told on."""
    auth_provider: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("user_id", "tenant_id", "session_id"):
            if (value := getattr(self, name)) is not None:
                check_id(value, name)


NOBODY = AuthContext()

_acting: ContextVar[Mapping[int, AuthContext]] = ContextVar("agent_sessions.acting")


def acting(store: object) -> AuthContext:
    """The identity that the calling code acts with on a store; `NOBODY` if none was given."""
    return _acting.get({}).get(id(store), NOBODY)


@contextmanager
def act_as(store: object, auth: AuthContext) -> Iterator[AuthContext]:
    """Act with an identity on a store, in this context and those that it starts."""
    token = _acting.set({**_acting.get({}), id(store): auth})
    try:
        yield auth
    finally:
        _acting.reset(token)


def agreed(given: str | None, own: str | None, what: str) -> str | None:
    """An argument, or what the identity says in its place.

    Raises:
        ForbiddenError: They contradict each other.
    """
    if given is None or own is None or given == own:
        return own if given is None else given
    raise ForbiddenError(f"{what} is not the one that this manager, or the identity acting, is for", field=what)
