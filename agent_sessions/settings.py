"""The configuration: environment variables `AK_SESSION__*` over the `session` section of a YAML file.

`Settings.load()` reads both as they are when it is called; `Settings(type="redis")` takes keywords and
reads neither. A name that does not exist is an error that says which one was probably meant; it is never ignored.
An empty variable (or a YAML key that is empty or null) counts as not set.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .encryption_keys import decode_keys
from .errors import InvalidError
from .policy import Policy

PREFIX = "AK_SESSION__"
STORE_ENTRY_POINTS = "agent_sessions.stores"
CONFIG_PATH_VARIABLE = "AK_CONFIG_PATH_OVERRIDE"

_A_CENTURY_S = 3_155_760_000
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")
_HAS_SESSION_SECTION = re.compile(r"""^["']?session["']?\s*:""", re.MULTILINE)


def store_names() -> list[str]:
    """The store names that `AK_SESSION__TYPE` takes: those installed under the entry point group of stores."""
    return sorted({entry_point.name for entry_point in entry_points(group=STORE_ENTRY_POINTS)})


def _known_store(name: str) -> str:
    names = store_names()
    if name in names or _DOTTED_PATH.fullmatch(name):
        return name
    raise ValueError(
        f"there is no such store: choose {', '.join(names)}, or name a class of yours as package.module:Class"
        + _nearest(name, names)
    )


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


def _node(text: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{text.strip()}")
    if not parts.hostname or parts.port == 0 or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError
    return parts.hostname, parts.port


def _nodes(given: object) -> object:
    nodes = [node for node in given.split(",") if node.strip()] if isinstance(given, str) else given
    if not isinstance(nodes, list | tuple):
        return given
    try:
        return tuple(_node(node) if isinstance(node, str) else node for node in nodes)
    except ValueError:  # its message would quote the node
        raise ValueError("nodes are written as host:port,host:port") from None


Nodes: TypeAlias = Annotated[tuple[tuple[str, int | None], ...], NoDecode, BeforeValidator(_nodes)]
Count: TypeAlias = Annotated[int, BeforeValidator(_number), Field(ge=0)]
TtlSeconds: TypeAlias = Annotated[int, BeforeValidator(_number), Field(ge=0, le=_A_CENTURY_S)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
StoreType: TypeAlias = Annotated[str, AfterValidator(_known_store)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class CacheSettings(_Section):
    """The cache of this process. It is always checked against the store's version, so it is never stale."""

    size: Count = 256
    """Sessions kept, the least recently used leaves first. 0 switches the cache off."""

    max_bytes: Count = 64 * 1024 * 1024
    """Bytes kept in all. 0 switches the cache off. The default is 64 MiB."""


class SQLiteSettings(_Section):
    """SQLite, for `AK_SESSION__TYPE` `sqlite`."""

    path: Path = Path("agent-sessions.db")
    """The file, which is made if it is not there, for its owner alone. Relative to the working directory."""

    synchronous: Literal["full", "normal"] = "full"
    """When a commit counts as stored: `full` when it is on the disk, so that it outlives a crash of the machine,
    `normal` when the system has it, so that it outlives a crash of the process."""


class DynamoDBSettings(_Section):
    """Amazon DynamoDB, for `AK_SESSION__TYPE` `dynamodb`. Credentials come by the AWS default chain."""

    table_name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{3,255}$")
    """The table: 3 to 255 letters, digits, `_`, `-` and `.`. It has to be named."""

    region: str | None = None
    """The AWS region. None: by the AWS default chain."""

    endpoint_url: str | None = None
    """Another endpoint than the region's own, such as DynamoDB Local at `http://localhost:8000`."""

    create_table: bool = False
    """Make the table when it is missing, with its indexes and its TTL, and wait until it is ready."""

    ttl: TtlSeconds | None = None
    """Seconds, 0 to a century (0 = kept for ever), in place of `AK_SESSION__TTL` where the store is `dynamodb`."""


class EncryptionSettings(_Section):
    """Encryption at rest, in every store."""

    keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys of 32 bytes in base64: a JSON list, or separated by commas. The first encrypts, all decrypt. Empty: nothing
    is encrypted."""

    accept_plaintext: bool = False
    """Read also what is not encrypted: for as long as `agent-sessions rekey` has not encrypted what is from before keys
    were configured. Whoever can write to the backend can put plain data in the place of encrypted data while it is
    on."""

    @field_validator("keys", mode="before")
    @classmethod
    def _a_list(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        if not given.lstrip().startswith("["):
            return given.split(",")
        try:
            return json.loads(given)
        except ValueError:  # its message would quote the text
            raise ValueError("this is neither a JSON list nor separated by commas") from None

    @field_validator("keys")
    @classmethod
    def _of_the_right_size(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        decode_keys(key.get_secret_value() for key in keys)
        return keys


class SentinelSettings(_Section):
    """Redis Sentinel: the sentinels name the server, and another one when it fails."""

    nodes: Nodes = ()
    """The sentinels, as `host:port,host:port`; without a port it is 26379. Empty: there are none. With sentinels, host
    and port of the URL don't matter; its user, password and database, and whether it uses TLS, do."""

    service_name: str = Field("mymaster", pattern=r"^\S{1,128}$")
    """What the sentinels call the service: 1 to 128 characters without white space."""

    username: str | None = None
    """The user at the sentinels, which have users of their own."""

    password: SecretStr | None = None
    """The password at the sentinels. Never shown."""


class RedisSettings(_Section):
    """Redis or Valkey, for `AK_SESSION__TYPE` `redis` and `valkey`.

    A password inside the URL is moved to `password`, so `url` is safe to show. `valkey://` and `valkeys://` are read
    as `redis://` and `rediss://`.
    """

    ssl: bool = False
    """Use TLS also where the URL says `redis://`. `rediss://` uses it anyway."""

    url: str = Field("redis://localhost:6379", validate_default=True, json_schema_extra={"secret": True})
    """Where the server is: `redis://[user[:password]@]host[:port][/database]`, `rediss://...` with TLS, or
    `unix://[user[:password]@]/path/to/socket`. Percent-encode what is special in a password."""

    password: SecretStr | None = None
    """The password, in place of one in the URL. Never shown."""

    prefix: str = Field("ak:sessions:", max_length=128, pattern=r"^[^\s{}\x00-\x1f\x7f]+$")
    """What every key starts with: 1 to 128 characters, without braces and white space."""

    ttl: TtlSeconds | None = None
    """Seconds, 0 to a century (0 = kept for ever), in place of `AK_SESSION__TTL` where the store is `redis` or
    `valkey`."""

    cluster: bool = False
    """Whether the URL is a node of a Redis Cluster. The other nodes are found by it."""

    startup_nodes: Nodes = ()
    """More nodes to find the cluster by when that of the URL is down, as `host:port,host:port`; without a port it is
    6379."""

    sentinel: SentinelSettings = Field(default_factory=SentinelSettings)
    """Redis Sentinel."""

    ssl_ca_certs: Path | None = None
    """A file with the certificates of the authorities that the server's certificate may come from. None: those that
    the system trusts."""

    ssl_certfile: Path | None = None
    """A file with the client's certificate, for a server that asks for one."""

    ssl_keyfile: Path | None = None
    """The file with the key of the client's certificate, if it is not in the same file."""

    ssl_check_hostname: bool = True
    """Whether the server's certificate must name the host that was asked for. On a cluster or with sentinels that is
    what the nodes announce, usually an IP address."""

    wait_replicas: Count = Field(0, le=100)
    """A commit counts as stored only when so many replicas have it: 0 to 100. One that they don't get in time is sent
    again for as long as the lease lasts, and then reported with `COMMIT_UNKNOWN`."""

    wait_timeout_s: Annotated[Seconds, Field(ge=0.001, le=60)] = 1.0
    """Seconds to wait for the replicas each time: 0.001 to 60."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> Self:
        encrypted = self.url.startswith("rediss://")
        problem = None
        if self.cluster and self.sentinel.nodes:
            problem = "a cluster has no sentinels: use AK_SESSION__REDIS__CLUSTER or AK_SESSION__REDIS__SENTINEL__NODES"
        elif self.cluster and self.url.startswith("unix://"):
            problem = "the nodes of a cluster are reached by host and port, not by a socket"
        elif self.cluster and urlsplit(self.url).path not in ("", "/", "/0"):
            problem = "a cluster has database 0 only"
        elif self.startup_nodes and not self.cluster:
            problem = "AK_SESSION__REDIS__STARTUP_NODES is for a cluster: set AK_SESSION__REDIS__CLUSTER=true"
        elif not encrypted and (self.ssl_ca_certs or self.ssl_certfile or self.ssl_keyfile):
            problem = "certificates are for TLS: the URL must start with rediss://, or set AK_SESSION__REDIS__SSL=true"
        elif self.ssl_keyfile and not self.ssl_certfile:
            problem = "AK_SESSION__REDIS__SSL_KEYFILE is the key of AK_SESSION__REDIS__SSL_CERTFILE, which is not set"
        if problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="before")
    @classmethod
    def _move_the_password_out_of_the_url(cls, data: Any) -> Any:
        if not (isinstance(data, Mapping) and isinstance(data.get("url"), str)):
            return data
        try:
            parts = urlsplit(data["url"])
        except ValueError:
            return data  # the URL's own check reports it
        if parts.password is None:
            return data
        place = parts.netloc.rpartition("@")[2]
        netloc = f"{parts.username}@{place}" if parts.username else place
        password = data.get("password")
        return {
            **data,
            "url": parts._replace(netloc=netloc).geturl(),
            "password": unquote(parts.password) if password is None else password,
        }

    @field_validator("url")
    @classmethod
    def _a_server_url(cls, url: str, info: ValidationInfo) -> str:
        try:
            parts = urlsplit(url)
            problem = _url_problem(parts)
        except ValueError:  # its message would quote the URL
            problem = "the host or the port can't be read"
        if problem:
            raise ValueError(f"{problem}: expected redis://[user[:password]@]host[:port][/database]")
        scheme = parts.scheme.replace("valkey", "redis")
        if info.data.get("ssl") and scheme == "redis":
            scheme = "rediss"
        return f"{scheme}{url[len(parts.scheme) :]}"


class TurnSettings(_Section):
    """How a turn takes its session, and what a second turn on the same session does."""

    on_busy: Literal["enqueue", "reject"] = "enqueue"
    """What a turn does while another one has the session: `enqueue` waits for it in order of arrival, `reject` fails
    at once with `SESSION_BUSY`."""

    wait_s: Annotated[Seconds, Field(ge=0, le=86_400)] = 60.0
    """Seconds that a turn waits for its session before it fails with `SESSION_BUSY`: 0 to 86400."""

    lease_s: Annotated[Seconds, Field(ge=0.1, le=3600)] = 30.0
    """Seconds that a running turn holds its session without renewing, so the longest delay after its process died:
    0.1 to 3600. Renewal is automatic while the turn runs."""


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
        return _loaded(_fingerprint())

    @classmethod
    def variables(cls) -> dict[str, Variable]:
        """Every setting by the name of its environment variable, for the reference and for tools."""
        return {variable.name: variable for variable in _variables(cls, ())}

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: _SettingsClass, init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keywords only: what is outside comes in through `load`."""
        return (init_settings,)


_SettingsClass: TypeAlias = type[BaseSettings]


@dataclass(frozen=True)
class Variable:
    """One setting, as the reference shows it."""

    name: str
    """The environment variable: `AK_SESSION__REDIS__URL`."""
    path: tuple[str, ...]
    """Where it is in `Settings` and under the `session` section of the YAML file: `("redis", "url")`."""
    default: object
    description: str
    """What it does, with unit and range."""
    secret: bool
    """Whether its value may hold a password, so that nothing shows it."""


def _fingerprint() -> tuple[object, ...]:
    """All that `load` depends on."""
    file = _config_file()
    try:
        state = file.stat()
        stamp = (state.st_mtime_ns, state.st_size)
    except OSError:
        stamp = None
    own = tuple((name, value) for name, value in os.environ.items() if name[:3].upper() == "AK_")
    return file.absolute(), stamp, own


@lru_cache(maxsize=8)
def _loaded(_: tuple[object, ...]) -> Settings:
    _check_variables(os.environ)
    file, section = _read_config_file()
    environment = EnvSettingsSource(Settings)()
    try:
        return Settings(**_merged(section, environment))
    except ValidationError as error:
        raise _wrong_value(error, environment, file) from None


def _variables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Variable]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, here)
        else:
            yield Variable(
                name=PREFIX + "__".join(here).upper(),
                path=here,
                default=field.default,
                description=" ".join((field.description or "").split()),
                secret=_is_secret(field),
            )


def _is_secret(field: FieldInfo) -> bool:
    marked = isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("secret"))
    return marked or "SecretStr" in str(field.annotation)


def _url_problem(parts: SplitResult) -> str | None:
    """What is wrong with a server URL, in words that quote nothing of it. Raises ValueError where even that is odd."""
    if parts.scheme not in ("redis", "rediss", "valkey", "valkeys", "unix"):
        return "the URL must start with redis://, rediss://, valkey://, valkeys:// or unix://"
    if parts.fragment or "@" in parts.path + parts.query:
        return "the URL has a #, a / or a ? inside the user or the password, which must be percent-encoded"
    if any(name == "password" for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        return "the URL has a password among its options; it belongs in AK_SESSION__REDIS__PASSWORD"
    if parts.scheme == "unix":
        return None if len(parts.path) > 1 else "the URL names no socket"
    if not parts.hostname or parts.port == 0:
        return "the URL names no host, or port 0"
    return None if re.fullmatch(r"/?\d*", parts.path) else "the database is not a number"


def _check_variables(names: Iterable[str]) -> None:
    known = Settings.variables()
    single_underscores = {re.sub("_+", "_", name): name for name in known}
    seen: dict[str, str] = {}
    for name in sorted(names):
        upper = name.upper()
        if upper in known:
            if upper in seen:
                raise InvalidError("SETTING", f"{seen[upper]} and {name} are the same; set one of them", field=name)
            seen[upper] = name
        elif upper.startswith(PREFIX):
            raise _unknown(name, name, PREFIX, known)
        elif meant := single_underscores.get(re.sub("_+", "_", upper)):
            raise InvalidError("SETTING", f"{name} is not a setting; did you mean {meant}?", field=name)


def _config_file() -> Path:
    return Path(os.environ.get(CONFIG_PATH_VARIABLE) or "config.yaml")


def _read_config_file() -> tuple[Path, dict[str, Any]]:
    """The file, and its `session` section without what is empty."""
    override = os.environ.get(CONFIG_PATH_VARIABLE)
    file = _config_file()
    if not override and not file.is_file():
        return file, {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidError("SETTING", f"{file} can't be read: {reason}", field=CONFIG_PATH_VARIABLE) from None
    # A config.yaml of another tool may be anything: several documents, tags of its own, a template.
    if not override and not _HAS_SESSION_SECTION.search(text):
        return file, {}
    section = _session_section(text, file)
    return file, _checked(section, (), {variable.path for variable in Settings.variables().values()}, file)


def _session_section(text: str, file: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the error's own text quotes the file
        place = f", line {mark.line + 1}" if mark else ""
        raise InvalidError("SETTING", f"{file}{place}: this can't be read as YAML", field="session") from None
    section = document.get("session") if isinstance(document, Mapping) else None
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise InvalidError("SETTING", f"session in {file} must be a mapping of settings", field="session")
    return section


def _checked(
    section: Mapping[Any, Any], path: tuple[str, ...], keys: set[tuple[str, ...]], file: Path
) -> dict[str, Any]:
    """The section without what is empty. A key that does not exist is an error, empty or not."""
    checked: dict[str, Any] = {}
    for key, value in section.items():
        here = (*path, str(key))
        is_section = any(known[: len(here)] == here for known in keys - {here})
        if is_section and isinstance(value, Mapping):
            checked[str(key)] = _checked(value, here, keys, file)
        elif not is_section and here not in keys:
            raise _unknown(_key(here), f"{_key(here)} in {file}", "session.", [_key(known) for known in sorted(keys)])
        elif value is not None and value != "":
            checked[str(key)] = value
    return checked


def _key(path: tuple[str, ...]) -> str:
    return ".".join(("session", *path))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        if isinstance(lower, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(lower, value)
        else:
            merged[key] = value
    return merged


def _unknown(field: str, what: str, prefix: str, names: Iterable[str]) -> InvalidError:
    remedy = _nearest(field, names, prefix) or f". There are: {', '.join(names)}"
    return InvalidError("SETTING", f"{what} is not a setting{remedy}", field=field)


def _nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The remedy for a misspelt name. The prefix, which all have, must not make them alike."""
    bare = {known.removeprefix(prefix).lower(): known for known in names}
    found = difflib.get_close_matches(name.lower().removeprefix(prefix.lower()), bare, n=1, cutoff=0.5)
    return f"; did you mean {bare[found[0]]}?" if found else ""


def _wrong_value(error: ValidationError, environment: Mapping[str, Any], file: Path) -> InvalidError:
    """The first wrong value: where it was set, what was expected, and the value itself if it can't be a secret."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = tuple(part for part in first["loc"] if isinstance(part, str))  # without the place in a list
    variable = next((known for known in Settings.variables().values() if known.path == path), None)
    from_environment = _has(environment, path)
    name = PREFIX + "__".join(path).upper() if from_environment else _key(path)
    given = str(first["input"])
    shown = "" if variable is None or variable.secret or "@" in given or "://" in given else f" ({given!r:.60})"
    message = first["msg"].removeprefix("Value error, ")
    explains_itself = first["type"] == "value_error"  # one of ours
    expected = f". Expected: {variable.description}" if variable and not explains_itself else ""
    where = "" if from_environment else f" in {file}"
    return InvalidError("SETTING", f"{name}{where} is wrong{shown}: {message}{expected}", field=name)


def _has(values: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
