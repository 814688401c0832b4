"""All settings in one object."""

from __future__ import annotations

import re
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..policy import Policy
from .fields import TtlSeconds
from .loading import load, load_file
from .redis import RedisSettings
from .sections import CacheSettings, DynamoDBSettings, EncryptionSettings, SQLiteSettings, TurnSettings
from .variables import PREFIX, Variable, nearest, variables_of

STORE_ENTRY_POINTS = "agent_sessions.stores"

_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")


def store_names() -> list[str]:
    """The store names that `AK_SESSION__TYPE` takes: those installed under the entry point group of stores."""
    return sorted({entry_point.name for entry_point in entry_points(group=STORE_ENTRY_POINTS)})


def _known_store(name: str) -> str:
    names = store_names()
    if name in names or _DOTTED_PATH.fullmatch(name):
        return name
    raise ValueError(
        f"there is no such store: choose {', '.join(names)}, or name a class of yours as package.module:Class"
        + nearest(name, names)
    )


StoreType: TypeAlias = Annotated[str, AfterValidator(_known_store)]


_Class: TypeAlias = type[BaseSettings]  # within `Settings`, `type` is a setting


class Settings(BaseSettings):
    """All settings. Frozen; a secret is in no `repr`.

    By keyword a wrong value is pydantic's `ValidationError`; from outside, through `load`, it is an `InvalidError`
    with the code `INVALID_SETTING` and the variable's name in `field`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        validate_default=False,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    type: StoreType = "in_memory"
    """The store: `in_memory`, `sqlite`, `redis`, `valkey`, `dynamodb`, the name of another installed one, or the dotted
    path of a class of your own, `package.module:Class`."""

    ttl: TtlSeconds = 604_800
    """Seconds since its last activity after which a session is gone, 0 to a century. 0 = kept for ever. The default
    is seven days."""

    cache: CacheSettings = Field(default_factory=CacheSettings)
    """The cache of this process."""

    sqlite: SQLiteSettings = Field(default_factory=SQLiteSettings)
    """SQLite."""

    redis: RedisSettings = Field(default_factory=RedisSettings)
    """Redis or Valkey."""

    dynamodb: DynamoDBSettings = Field(default_factory=DynamoDBSettings)
    """Amazon DynamoDB."""

    encryption: EncryptionSettings = Field(default_factory=EncryptionSettings)
    """Encryption at rest."""

    policy: Policy = Field(default_factory=Policy)
    """The rules for the life of sessions, where none are stored."""

    enforce_ownership: bool = False
    """Refuse a session that belongs to another user than the one that `acting_as` names."""

    turn: TurnSettings = Field(default_factory=TurnSettings)
    """Turns: waiting and leases."""

    @property
    def session_ttl(self) -> timedelta | None:
        """The TTL in force for the store of this `type`; None = kept for ever."""
        of_stores = {"redis": self.redis.ttl, "valkey": self.redis.ttl, "dynamodb": self.dynamodb.ttl}
        own = of_stores.get(self.type)
        seconds = self.ttl if own is None else own
        return timedelta(seconds=seconds) if seconds else None

    @classmethod
    def load(cls) -> Settings:
        """Read the environment, and under it the YAML file, as they are now. Unchanged, they give the same object.

        The file is the one that `AK_CONFIG_PATH_OVERRIDE` names, else `config.yaml` in the working directory if there
        is one. Only its `session` section is looked at.

        Raises:
            InvalidError: `INVALID_SETTING`: a name that does not exist, a wrong value, or a file that can't be read.
                Its `field` is the variable, or the key as `session.redis.url`.
        """
        return load(cls)

    @classmethod
    def load_file(cls, file: Path) -> Settings:
        """Read the `session` section of a YAML file alone: neither the environment nor another file matters.

        Raises:
            InvalidError: `INVALID_SETTING`, as `load`.
        """
        return load_file(cls, file)

    @classmethod
    def variables(cls) -> dict[str, Variable]:
        """Every setting by the name of its environment variable, for the reference and for tools."""
        return variables_of(cls)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: _Class, init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keywords only: what is outside comes in through `load`."""
        return (init_settings,)
