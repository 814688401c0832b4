"""Activations: the record of each run of an agent."""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, NamedTuple

import pydantic_core

from .. import codec
from ..background import spawn
from ..errors import SessionError, SessionNotFoundError
from ..lifecycle.users import UserKeys
from ..manager import SessionManager
from ..record import as_time
from ..stores.base import Commit, Key, Row, Version, Wanted
from ..stores.lifetime import Lifetime
from ..turns.leases import new_owner
from . import pruning

logger = logging.getLogger("agent_sessions")

ActivationStatus = Literal["RUNNING", "PAUSED", "COMPLETE", "FAILED", "CANCELLED", "ABANDONED"]
SkillStatus = Literal["RUNNING", "COMPLETE", "FAILED", "CANCELLED"]

MAX_TEXT_BYTES = 16 * 2**10

_FIELD = "activation"
_TIMES = ("start", "end")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class SkillCall:
    """A call of a skill during a run."""

    name: str
    start: datetime
    end: datetime | None = None
    status: SkillStatus = "RUNNING"


@dataclass
class Activation:
    """The record of one run of an agent. All times are aware, in UTC."""

    activation_id: str
    session_id: str
    tenant_id: str
    agent_name: str
    framework: str
    status: ActivationStatus
    start: datetime
    end: datetime | None = None
    user_id: str | None = None
    parent_activation_id: str | None = None
    payload: Any = field(default=None, repr=False)
    """What the agent was given; cut to 16 KiB. None of a run that failed before there was a session of its user: an
    erasure of the user could not find it."""
    response: Any = field(default=None, repr=False)
    """What it answered; cut to 16 KiB."""
    cut: bool = False
    """Whether payload or response were longer."""
    error: str | None = field(default=None, repr=False)
    skills: list[SkillCall] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        """The same as `activation_id`."""
        return self.activation_id


class Started(NamedTuple):
    """A running activation."""

    owner: str
    """Who holds its lease."""
    version: Version | None
    """At which it was written; None: it could not be."""
    end_id: bytes
    """The id of the commit that ends it, which may have to be repeated."""


class Activations:
    """Keeps the activations of a manager's sessions, beside them: writing one never touches its session.

    A running activation holds the lease of its own record, renewed while its process lives. One that says RUNNING
    without it is ABANDONED. One that was deleted, with its session, is not made again when the run ends. Each lasts as
    long as its session would, resting from then on.
    """

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    async def start(self, activation: Activation) -> Started:
        """Write a run that begins. What goes wrong is logged, not raised."""
        owner, row = new_owner(), self._manager._cache.get(_session_key(activation)).row
        version = await self._write(activation, secrets.token_bytes(8), owner, None, self._manager.lease_ms, row)
        if version is not None:
            self._manager.leases.hold(_key(activation), owner)
        return Started(owner, version, secrets.token_bytes(8))

    async def finish(self, activation: Activation, started: Started, session: Row | None) -> None:
        """Write how it ended. What goes wrong is logged, not raised: the run's own outcome counts."""
        self._manager.leases.drop(started.owner)
        await self._write(activation, started.end_id, started.owner, started.version, None, session)
        tenant_id, session_id = activation.tenant_id, activation.session_id
        old = pruning.ledger_of(self._manager).note(tenant_id, session_id, activation.activation_id)
        look = pruning.is_time_to_look()
        if old or look:
            spawn(partial(pruning.remove, self._manager.store, tenant_id, session_id, old, look=look))

    async def settle(self, activation: Activation, started: Started, seen: Row | None) -> None:
        """Write how a run ended that has stored nothing by itself: its session, as it was seen, may be gone by now."""
        row = seen
        try:
            row = (await self._manager.store.open(_session_key(activation), wanted=Wanted(values=False))).row
            kept = await self._kept(activation, seen, row)
            if kept is None:
                self._manager.leases.drop(started.owner)
                await self._manager.store.delete(_key(activation), secrets.token_bytes(8))
                return
        except Exception as error:
            kept = _without_text(activation)  # who knows
            logger.warning("session %r could not be looked at: %s", activation.session_id, _named(error))
        await self.finish(kept, started, row)

    async def get(self, tenant_id: str, activation_id: str) -> Activation | None:
        """The activation of this id, or None."""
        opened = await self._manager.store.open(Key(tenant_id, "run", activation_id), wanted=Wanted(values=False))
        if opened.row is None:
            return None
        activation = _decoded(opened.row)
        self._manager._check_owner(_session_key(activation), activation.user_id)
        if activation.status == "RUNNING" and opened.lease is None:
            return replace(activation, status="ABANDONED", end=as_time(opened.row.active_at))
        return activation

    async def of_session(self, tenant_id: str, session_id: str, limit: int) -> list[Activation]:
        """The session's activations, the newest first."""
        limit = min(limit, pruning.KEPT)
        await self._manager._owned(session_id)
        page = await self._manager.store.find(tenant_id, "run", belongs_to=session_id, limit=limit)
        found = [_decoded(place.row) for place in page.found]
        if (user_id := self._manager._enforced) is not None:
            found = [one for one in found if one.user_id in (None, user_id)]  # others may have tried, in vain
        checked = [await self.get(tenant_id, one.activation_id) if one.status == "RUNNING" else one for one in found]
        return sorted((one for one in checked if one is not None), key=lambda one: one.start, reverse=True)

    async def _write(
        self,
        activation: Activation,
        id: bytes,
        owner: str,
        expected: Version | None,
        hold_ms: int | None,
        session: Row | None,
    ) -> Version | None:
        try:
            commit = Commit(
                id=id,
                owner=owner,
                expected=expected,
                hold_ms=hold_ms,
                lifetime=Lifetime(ttl_ms=self._ttl_ms(session)),
                belongs_to=activation.session_id,
                fields={_FIELD: codec.encode(_fields(activation))},
            )
            return (await self._manager.store.commit(_key(activation), commit)).version
        except SessionNotFoundError:
            return None  # it was deleted meanwhile
        except Exception as error:
            logger.warning("activation %s could not be written: %s", activation.activation_id, _named(error))
            return None

    def _ttl_ms(self, session: Row | None) -> int | None:
        """How long a session lasts that rests: as configured if it is not known, or has no end."""
        if session is None or session.gone_at is None:
            return self._manager.ttl_ms
        return max(1, session.gone_at - session.active_at)

    async def _kept(self, activation: Activation, seen: Row | None, row: Row | None) -> Activation | None:
        """What may be kept of a run whose session was seen so, and is so now; None: nothing, it was deleted."""
        store, user_id = self._manager.store, activation.user_id
        if seen is not None and (row is None or row.started_at != seen.started_at):
            return None
        if user_id is None or (row is not None and row.belongs_to == user_id):
            return activation
        if await UserKeys(store, activation.tenant_id, self._manager.lease_ms).is_erased(user_id):
            return None
        return activation if activation.status in ("COMPLETE", "PAUSED") else _without_text(activation)


def bounded(value: Any) -> tuple[Any, bool]:
    """What an activation keeps of a payload or response, and whether that is cut or a stand-in: at most 16 KiB."""
    if isinstance(value, str):
        kept = value.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore")
        return kept, kept != value
    try:
        data = codec.encode(value)
        if len(data) <= MAX_TEXT_BYTES:
            return codec.decode(data), False  # a copy: the agent may change its own
    except SessionError:
        pass  # not storable as it is: a text stands in
    return bounded(_text_of(value))[0], True


def _without_text(activation: Activation) -> Activation:
    return replace(activation, payload=None, response=None)


def _text_of(value: Any) -> str:
    """A text for what can't be kept as it is. Of an object that is no data, its type: who knows what it holds."""
    try:
        text = _json_of(value)
    except Exception:
        return _type_of(value)  # it has none
    return text[1:-1] if text.startswith('"') else text


def _json_of(value: Any) -> str:
    try:
        return pydantic_core.to_json(value, bytes_mode="base64", fallback=_type_of).decode()
    except pydantic_core.PydanticSerializationError:  # half of a surrogate pair, for example
        return json.dumps(value, default=_type_of)


def _type_of(value: Any) -> str:
    return f"<{type(value).__name__}>"


def _named(error: Exception) -> str:
    return error.code if isinstance(error, SessionError) else type(error).__name__


def _key(activation: Activation) -> Key:
    return Key(activation.tenant_id, "run", activation.activation_id)


def _session_key(activation: Activation) -> Key:
    return Key(activation.tenant_id, "session", activation.session_id)


def _fields(activation: Activation) -> dict[str, Any]:
    """The activation as plain data, times as microseconds since 1970-01-01 UTC."""
    fields = {name: value for name, value in vars(activation).items() if value is not None}
    fields["skills"] = [_plain(vars(call)) for call in list(activation.skills)]
    return _plain(fields)


def _decoded(row: Row) -> Activation:
    fields = codec.decode((row.fields or {})[_FIELD])
    fields["skills"] = [SkillCall(**_timed(call)) for call in fields["skills"]]
    return Activation(**_timed(fields))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, **{name: _microseconds(fields[name]) for name in _TIMES if fields.get(name) is not None}}


def _timed(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, **{name: _EPOCH + timedelta(microseconds=fields[name]) for name in _TIMES if fields.get(name)}}


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
