"""How long sessions last, and how many a user may have: for all, per tenant, per session; the nearest wins."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .durations import duration
from .errors import InvalidError

_IN_MILLISECONDS = {"inactiveTimeout": "idle_after", "absoluteTimeout": "absolute_timeout"}
_LIMIT = "maxSessionsPerUser"
_FAR_TOO_LONG_MS = 10**15


def _duration(value: object) -> object:
    try:
        return duration(value, "a duration")
    except InvalidError as error:
        raise ValueError(error.message) from None


def _number(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError("it must be a whole number")
    return value


Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_duration)]


class Policy(BaseModel):
    """The rules for the life of sessions. What is not given is as a farther policy says.

    Durations are seconds, a `timedelta`, or text: `30m`, `24h`, `7d`. `inactiveTimeout` and `absoluteTimeout`, in
    milliseconds, and `maxSessionsPerUser` are taken as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    idle_after: Duration | None = timedelta(minutes=30)
    """So long after its last activity a session is idle. None: never."""

    end_after: Duration | None = timedelta(hours=24)
    """So long after it became idle it has ended, if it was made by `create` or `get_or_create`. None: never."""

    absolute_timeout: Duration | None = None
    """So long after its start it has ended, whatever happened since. None: never."""

    retention: Duration | None = timedelta(days=7)
    """So long after its end it is gone. None: never."""

    max_sessions_per_user: Annotated[int, BeforeValidator(_number), Field(ge=1)] | None = None
    """The most sessions of a user that are active or idle at once. None: any number."""

    on_limit: Literal["reject", "end_oldest"] = "reject"
    """What `create` does at the limit: fail with `SESSION_LIMIT_REACHED`, or end the one that rested longest."""

    @model_validator(mode="before")
    @classmethod
    def _read_milliseconds(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        ours = {name: value for name, value in data.items() if name not in (*_IN_MILLISECONDS, _LIMIT)}
        for theirs, name in _IN_MILLISECONDS.items():
            if theirs in data:
                value = data[theirs]
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                ours[name] = min(value, _FAR_TOO_LONG_MS) / 1000 if is_number else "milliseconds"
        if _LIMIT in data:
            ours["max_sessions_per_user"] = data[_LIMIT]
        return ours

    @classmethod
    def of(cls, policy: Policy | Mapping[str, Any]) -> Policy:
        """A policy from a mapping.

        Raises:
            InvalidError: `INVALID_POLICY`: a name that does not exist, or a wrong value.
        """
        if isinstance(policy, Policy):
            return policy
        try:
            return cls.model_validate(policy)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            field = ".".join(map(str, wrong["loc"])) or "policy"
            raise InvalidError("POLICY", f"{field}: {wrong['msg']}", field=field) from None

    def over(self, farther: Policy) -> Policy:
        """This one, and where it says nothing, the farther one."""
        return farther.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})
