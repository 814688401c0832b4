"""What a setting may be: the types that the sections share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_A_CENTURY_S = 3_155_760_000


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


Count: TypeAlias = Annotated[int, BeforeValidator(_number), Field(ge=0)]
TtlSeconds: TypeAlias = Annotated[int, BeforeValidator(_number), Field(ge=0, le=_A_CENTURY_S)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)
