"""Activations: the record of each run of an agent."""

from __future__ import annotations

import logging
import random
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pydantic

from .. import codec
from ..errors import SessionError
from ..manager import SessionManager
from ..record import as_time
from ..stores.base import Commit, Key, Row, Wanted
from ..stores.lifetime import Lifetime
from ..turns.leases import new_owner

logger = logging.getLogger("agent_sessions")

ActivationStatus = Literal["RUNNING", "PAUSED", "COMPLETE", "FAILED", "CANCELLED", "ABANDONED"]
SkillStatus = Literal["RUNNING", "COMPLETE", "FAILED", "CANCELLED"]

KEPT_PER_SESSION = 100
MAX_TEXT_BYTES = 16 * 2**10

_PRUNE_CHANCE = 1 / 16
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
    """What the agent was given; cut to 16 KiB."""
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


class Activations:
    """Keeps the activations of a manager's sessions, beside them: writing one never touches its session.

    A running activation holds the lease of its own record, renewed while its process lives. One that says RUNNING
    without it is ABANDONED.
    """

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    async def start(self, activation: Activation) -> str:
        """Write a run that begins; returns the owner of its lease. What goes wrong is logged, not raised."""
        owner = new_owner()
        key = _key(activation)
        if await self._write(activation, owner, hold_ms=self._manager.lease_ms):
            self._manager.leases.hold(key, owner)
        return owner

    async def finish(self, activation: Activation, owner: str) -> None:
        """Write how it ended. What goes wrong is logged, not raised: the run's own outcome counts."""
        self._manager.leases.drop(owner)
        await self._write(activation, owner, hold_ms=None)
        if random.random() < _PRUNE_CHANCE:
            await self._prune(activation.tenant_id, activation.session_id)

    async def get(self, tenant_id: str, activation_id: str) -> Activation | None:
        """The activation of this id, or None."""
        opened = await self._manager.store.open(Key(tenant_id, "run", activation_id), wanted=Wanted(values=False))
        if opened.row is None:
            return None
        activation = _decoded(opened.row)
        if activation.status == "RUNNING" and opened.lease is None:
            return replace(activation, status="ABANDONED", end=as_time(opened.row.active_at))
        return activation

    async def of_session(self, tenant_id: str, session_id: str, limit: int) -> list[Activation]:
        """The session's activations, the newest first."""
        page = await self._manager.store.find(tenant_id, "run", belongs_to=session_id, limit=limit)
        found = [_decoded(place.row) for place in page.found]
        checked = [await self.get(tenant_id, one.activation_id) if one.status == "RUNNING" else one for one in found]
        return sorted((one for one in checked if one is not None), key=lambda one: one.start, reverse=True)

    async def _write(self, activation: Activation, owner: str, hold_ms: int | None) -> bool:
        try:
            commit = Commit(
                id=secrets.token_bytes(8),
                owner=owner,
                expected=None,
                hold_ms=hold_ms,
                lifetime=Lifetime(ttl_ms=self._manager.ttl_ms),
                belongs_to=activation.session_id,
                fields={_FIELD: codec.encode(_fields(activation))},
            )
            await self._manager.store.commit(_key(activation), commit)
        except Exception as error:
            logger.warning("activation %s could not be written: %s", activation.activation_id, _named(error))
            return False
        return True

    async def _prune(self, tenant_id: str, session_id: str) -> None:
        store = self._manager.store
        try:
            newest = await store.find(tenant_id, "run", belongs_to=session_id, limit=KEPT_PER_SESSION)
            while newest.next is not None:
                newest = await store.find(
                    tenant_id, "run", belongs_to=session_id, limit=KEPT_PER_SESSION, cursor=newest.next
                )
                for place in newest.found:
                    await store.delete(Key(tenant_id, "run", place.id), secrets.token_bytes(8))
        except Exception as error:
            logger.warning("old activations of session %r could not be removed: %s", session_id, _named(error))


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


def _text_of(value: Any) -> str:
    """A text for what can't be kept as it is. Of an object that is no data, its type: who knows what it holds."""
    try:
        if isinstance(value, pydantic.BaseModel):
            return value.model_dump_json()
        if isinstance(value, dict | list | tuple | set | frozenset | int | float | bytes):
            return str(value)
    except Exception:
        pass  # it has none
    return f"<{type(value).__name__}>"


def _named(error: Exception) -> str:
    return error.code if isinstance(error, SessionError) else type(error).__name__


def _key(activation: Activation) -> Key:
    return Key(activation.tenant_id, "run", activation.activation_id)


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
