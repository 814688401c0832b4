from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from agent_sessions.errors import InvalidError
from agent_sessions.settings import CacheSettings, RedisSettings, Settings, TurnSettings, store_names

Environment = Callable[..., None]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """Sets variables, by default none, in an empty working directory."""
    for name in [name for name in os.environ if name.upper().startswith("AK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def refused() -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        Settings.load()
    assert caught.value.code == "INVALID_SETTING"
    return caught.value


def config_file(text: str) -> None:
    Path("config.yaml").write_text(text, encoding="utf-8")


def test_without_any_variable_there_are_the_documented_defaults() -> None:
    settings = Settings.load()

    assert settings == Settings()
    assert settings.type == "in_memory"
    assert settings.ttl == 604_800
    assert settings.cache == CacheSettings(size=256, max_bytes=67_108_864)
    assert settings.redis == RedisSettings(
        url="redis://localhost:6379", password=None, prefix="ak:sessions:", ssl=False
    )
    assert settings.turn == TurnSettings(on_busy="enqueue", wait_s=60, lease_s=30)


def test_every_variable_is_read(environment: Environment) -> None:
    environment(
        AK_SESSION__TYPE="redis",
        AK_SESSION__TTL="60",
        AK_SESSION__CACHE__SIZE="10",
        AK_SESSION__CACHE__MAX_BYTES="1000",
        AK_SESSION__REDIS__URL="redis://example.test:7000/2",
        AK_SESSION__REDIS__PREFIX="app:",
        AK_SESSION__REDIS__PASSWORD="hunter2",
        AK_SESSION__REDIS__SSL="true",
        AK_SESSION__REDIS__TTL="90",
        AK_SESSION__TURN__ON_BUSY="reject",
        AK_SESSION__TURN__WAIT_S="1.5",
        AK_SESSION__TURN__LEASE_S="0.5",
    )

    assert Settings.load() == Settings(
        type="redis",
        ttl=60,
        cache=CacheSettings(size=10, max_bytes=1000),
        redis=RedisSettings(
            url="rediss://example.test:7000/2", prefix="app:", password=SecretStr("hunter2"), ssl=True, ttl=90
        ),
        turn=TurnSettings(on_busy="reject", wait_s=1.5, lease_s=0.5),
    )


def test_the_environment_is_read_when_load_is_called_and_not_by_keyword(environment: Environment) -> None:
    before = Settings.load()
    environment(AK_SESSION__TTL="60")

    assert (before.ttl, Settings().ttl, Settings.load().ttl) == (604_800, 604_800, 60)


def test_variables_are_read_in_any_case(environment: Environment) -> None:
    environment(ak_session__Cache__size="7")

    assert Settings.load().cache.size == 7


def test_one_variable_in_two_spellings_is_refused(environment: Environment) -> None:
    environment(AK_SESSION__TTL="60", ak_session__ttl="90")
    if len([name for name in os.environ if name.upper() == "AK_SESSION__TTL"]) < 2:
        pytest.skip("this system's variables have no case")

    assert "AK_SESSION__TTL and ak_session__ttl are the same" in str(refused())


def test_an_empty_variable_counts_as_not_set(environment: Environment) -> None:
    config_file("session: {ttl: 60}")
    environment(AK_SESSION__TTL="", AK_SESSION__REDIS__PASSWORD="", AK_CONFIG_PATH_OVERRIDE="")

    assert Settings.load() == Settings(ttl=60)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("AK_SESSION__REDSI__URL", "AK_SESSION__REDIS__URL"),
        ("AK_SESSION__LEASE_S", "AK_SESSION__TURN__LEASE_S"),
        ("AK_SESSION__REDIS_URL", "AK_SESSION__REDIS__URL"),
        ("ak_session__typ", "AK_SESSION__TYPE"),
        ("AK_SESSION__REDIS", "AK_SESSION__REDIS__URL"),
        ("AK_SESSION_TYPE", "AK_SESSION__TYPE"),
        ("AK_SESSION__TTL__", "AK_SESSION__TTL"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_right_one(
    environment: Environment, wrong: str, meant: str
) -> None:
    environment(**{wrong: ""})

    error = refused()

    assert error.field == wrong
    assert f"{wrong} is not a setting; did you mean {meant}?" in str(error)


def test_a_variable_like_no_other_is_refused_with_all_that_there_are(environment: Environment) -> None:
    environment(AK_SESSION__XYZZY="1")

    for name in Settings.variables():
        assert name in str(refused())


def test_variables_of_others_are_none_of_our_business(environment: Environment) -> None:
    environment(AK_SESSIONS="1", AK_SESSION_COOKIE="x", AK_API__PORT="80", SESSION__TYPE="file")

    assert Settings.load() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("AK_SESSION__TTL", "7d", "Seconds since its last activity"),
        ("AK_SESSION__TTL", "-1", "greater than or equal to 0"),
        ("AK_SESSION__TTL", "99999999999", "less than or equal to 3155760000"),
        ("AK_SESSION__CACHE__SIZE", "1.5", "valid integer"),
        ("AK_SESSION__TURN__LEASE_S", "0", "0.1 to 3600"),
        ("AK_SESSION__TURN__LEASE_S", "3601", "0.1 to 3600"),
        ("AK_SESSION__TURN__WAIT_S", "nan", "finite number"),
        ("AK_SESSION__TURN__ON_BUSY", "interrupt", "'enqueue' or 'reject'"),
        ("AK_SESSION__REDIS__PREFIX", "a{b", "without braces"),
        ("AK_SESSION__REDIS__SSL", "perhaps", "boolean"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    environment: Environment, name: str, value: str, expected: str
) -> None:
    environment(**{name: value})

    error = refused()

    assert error.field == name
    assert f"{name} is wrong ({value!r})" in str(error)
    assert expected in str(error)


class TestStoreType:
    def test_the_installed_stores_are_choices(self) -> None:
        assert {"in_memory", "redis", "valkey"} <= set(store_names())

    @pytest.mark.parametrize("path", ["pkg.mod:Class", "pkg.mod.Class", "mod:Class", "_a.b2:C_3"])
    def test_a_dotted_path_is_taken(self, environment: Environment, path: str) -> None:
        environment(AK_SESSION__TYPE=path)

        assert Settings.load().type == path

    @pytest.mark.parametrize("name", ["reddis", "Redis", "memory", "pkg.", ".Class", "pkg:mod:Class", "a b.C", "1.2"])
    def test_anything_else_lists_the_choices(self, environment: Environment, name: str) -> None:
        environment(AK_SESSION__TYPE=name)

        error = refused()

        assert error.field == "AK_SESSION__TYPE"
        assert "dynamodb, in_memory, redis, sqlite, valkey" in str(error)
        assert "package.module:Class" in str(error)

    def test_a_near_miss_is_helped(self, environment: Environment) -> None:
        environment(AK_SESSION__TYPE="reddis")

        assert "did you mean redis?" in str(refused())


class TestRedisUrl:
    @pytest.mark.parametrize(
        ("given", "url"),
        [
            ("redis://localhost", "redis://localhost"),
            ("rediss://h:7/1", "rediss://h:7/1"),
            ("valkey://h", "redis://h"),
            ("valkeys://h", "rediss://h"),
            ("redis://[::1]:7000", "redis://[::1]:7000"),
            ("redis://h?socket_timeout=3", "redis://h?socket_timeout=3"),
            ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ],
    )
    def test_servers_and_sockets(self, given: str, url: str) -> None:
        assert RedisSettings(url=given).url == url

    def test_ssl_turns_a_plain_url_into_tls(self) -> None:
        assert RedisSettings(ssl=True).url == "rediss://localhost:6379"

    def test_a_password_in_it_moves_out_of_it(self) -> None:
        settings = RedisSettings(url="redis://user:p%40ss@h:7/1")

        assert settings.url == "redis://user@h:7/1"
        assert settings.password == SecretStr("p@ss")

    def test_a_password_of_its_own_wins(self) -> None:
        settings = RedisSettings(url="redis://:old@h", password=SecretStr("new"))

        assert settings.url == "redis://h"
        assert settings.password == SecretStr("new")

    @pytest.mark.parametrize(
        "url",
        [
            "hunter2",
            "localhost:6379",
            "http://:hunter2@h",
            "redis://",
            "redis://:hunter2@",
            "redis://:hunter2@h:port",
            "redis://:hunter2@h:0",
            "redis://:hunter2@h/db",
            "redis://:hunter2#x@h",
            "redis://user:1?hunter2@h",
            "redis://user:1/hunter2@h",
            "redis://user:1#hunter2@h",
            "redis://h?password=hunter2",
            "redis://:hunter2@[h",
            "unix://:hunter2@",
        ],
    )
    def test_a_wrong_one_is_refused_and_never_shown(self, environment: Environment, url: str) -> None:
        environment(AK_SESSION__REDIS__URL=url)

        error = refused()

        assert error.field == "AK_SESSION__REDIS__URL"
        assert "redis://[user[:password]@]host[:port][/database]" in str(error)
        assert "hunter2" not in "".join(traceback.format_exception(error))


class TestSecrets:
    def test_no_repr_or_dump_shows_one(self) -> None:
        settings = Settings(redis=RedisSettings(url="redis://user:hunter2@h"))

        assert settings.redis.password == SecretStr("hunter2")
        for shown in (repr(settings), str(settings), settings.model_dump_json()):
            assert "hunter2" not in shown

    def test_a_wrong_one_is_not_shown(self) -> None:
        config_file("session: {redis: {password: [hunter2]}}")

        error = refused()

        assert error.field == "session.redis.password"
        assert "hunter2" not in "".join(traceback.format_exception(error))

    def test_one_in_the_wrong_place_is_not_shown(self, environment: Environment) -> None:
        environment(AK_SESSION__TYPE="redis://:hunter2@h")

        assert "hunter2" not in str(refused())

    def test_wrong_keywords_do_not_show_one(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate({"redis": {"url": "http://:hunter2@h"}})

        assert "hunter2" not in str(caught.value)


class TestConfigFile:
    def test_the_environment_wins_key_by_key(self, environment: Environment) -> None:
        config_file("session: {type: redis, ttl: 60, redis: {url: 'redis://h', prefix: 'file:'}}")
        environment(AK_SESSION__REDIS__PREFIX="env:")

        assert Settings.load() == Settings(type="redis", ttl=60, redis=RedisSettings(url="redis://h", prefix="env:"))

    def test_the_override_names_another_file(self, environment: Environment, tmp_path: Path) -> None:
        config_file("session: {ttl: 1}")
        (tmp_path / "other.yml").write_text('{"session": {"ttl": 2}}', encoding="utf-8")
        environment(AK_CONFIG_PATH_OVERRIDE=str(tmp_path / "other.yml"))

        assert Settings.load().ttl == 2

    def test_an_override_that_does_not_exist_is_refused(self, environment: Environment) -> None:
        environment(AK_CONFIG_PATH_OVERRIDE="nowhere.yaml")

        error = refused()

        assert error.field == "AK_CONFIG_PATH_OVERRIDE"
        assert "nowhere.yaml can't be read: No such file or directory" in str(error)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "# nothing\n",
            "agents: [a, b]\n",
            "session:\n",
            "session: {}\n",
            "session: {redis: , ttl: null, type: ''}\n",
            "- a list\n",
            "kind: A\n---\nkind: B\n",
            "light: !secret password\n",
            "{% if x %}\nkey: [\n{% endif %}\n",
            "web:\n  session: {cookie: true}\n",
        ],
    )
    def test_a_file_without_settings_of_ours_is_fine(self, text: str) -> None:
        config_file(text)

        assert Settings.load() == Settings()

    @pytest.mark.parametrize(
        ("text", "wrong", "meant"),
        [
            ("session: {typ: redis}", "session.typ", "session.type"),
            ("session: {redis: {urll: x}}", "session.redis.urll", "session.redis.url"),
            ("session: {redsi: {url: x}}", "session.redsi", "session.redis.url"),
            ("session: {TTL: 1}", "session.TTL", "session.ttl"),
            ("session: {lease_s: }", "session.lease_s", "session.turn.lease_s"),
        ],
    )
    def test_a_misspelt_key_is_named_with_the_nearest_right_one(self, text: str, wrong: str, meant: str) -> None:
        config_file(text)

        error = refused()

        assert error.field == wrong
        assert f"{wrong} in config.yaml is not a setting; did you mean {meant}?" in str(error)

    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("session: {ttl: yes}", "session.ttl"),
            ("session: {ttl: 7d}", "session.ttl"),
            ("session: {turn: {lease_s: 0}}", "session.turn.lease_s"),
            ("session: {redis: 5}", "session.redis"),
            ("session: redis", "session"),
            ("session: {type: [", "session"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_file(self, text: str, wrong: str) -> None:
        config_file(text)

        error = refused()

        assert error.field == wrong
        assert "config.yaml" in str(error)

    def test_a_wrong_variable_is_not_blamed_on_the_file(self, environment: Environment) -> None:
        config_file("session: {ttl: 60}")
        environment(AK_SESSION__TTL="x")

        error = refused()

        assert error.field == "AK_SESSION__TTL"
        assert "config.yaml" not in str(error)


@pytest.mark.parametrize(
    ("settings", "ttl"),
    [
        (Settings(), timedelta(days=7)),
        (Settings(ttl=0), None),
        (Settings(type="redis"), timedelta(days=7)),
        (Settings(type="redis", redis=RedisSettings(ttl=60)), timedelta(minutes=1)),
        (Settings(type="valkey", redis=RedisSettings(ttl=0)), None),
        (Settings(type="in_memory", redis=RedisSettings(ttl=60)), timedelta(days=7)),
    ],
)
def test_the_ttl_of_the_store_in_use_wins(settings: Settings, ttl: timedelta | None) -> None:
    assert settings.session_ttl == ttl


@pytest.mark.parametrize(
    ("nodes", "read"),
    [
        ("a:1,b:2", (("a", 1), ("b", 2))),
        (" a , [::1]:7000 ,", (("a", None), ("::1", 7000))),
        ("10.0.0.1", (("10.0.0.1", None),)),
    ],
)
def test_nodes_are_written_with_commas(
    environment: Environment, nodes: str, read: tuple[tuple[str, int | None], ...]
) -> None:
    environment(AK_SESSION__REDIS__CLUSTER="true", AK_SESSION__REDIS__STARTUP_NODES=nodes)

    assert Settings.load().redis.startup_nodes == read


def test_nodes_are_a_list_in_the_file() -> None:
    config_file("session: {redis: {sentinel: {nodes: ['a:1', b], service_name: sessions, password: hunter2}}}")

    sentinel = Settings.load().redis.sentinel
    assert (sentinel.nodes, sentinel.service_name) == ((("a", 1), ("b", None)), "sessions")
    assert "hunter2" not in repr(sentinel)


@pytest.mark.parametrize("nodes", ["a:x", "a:0", "redis://a:1", "u:p@a", "a:1/0"])
def test_what_is_no_node_is_refused(environment: Environment, nodes: str) -> None:
    environment(AK_SESSION__REDIS__SENTINEL__NODES=nodes)

    assert refused().field == "AK_SESSION__REDIS__SENTINEL__NODES"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"CLUSTER": "true", "SENTINEL__NODES": "a"}, "a cluster has no sentinels"),
        ({"CLUSTER": "true", "URL": "redis://a/3"}, "database 0 only"),
        ({"CLUSTER": "true", "URL": "unix:///run/redis.sock"}, "not by a socket"),
        ({"STARTUP_NODES": "a:1"}, "AK_SESSION__REDIS__CLUSTER=true"),
        ({"SSL_CA_CERTS": "ca.pem"}, "the URL must start with rediss://"),
        ({"SSL": "true", "SSL_KEYFILE": "key.pem"}, "AK_SESSION__REDIS__SSL_CERTFILE"),
    ],
)
def test_settings_of_redis_that_contradict_each_other_are_refused(
    environment: Environment, variables: dict[str, str], problem: str
) -> None:
    environment(**{f"AK_SESSION__REDIS__{name}": value for name, value in variables.items()})

    error = refused()
    assert problem in str(error)
    assert error.field == "AK_SESSION__REDIS"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().ttl = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings().turn.wait_s = 1  # type: ignore[misc]


def test_every_variable_tells_what_it_does() -> None:
    variables = Settings.variables()

    assert variables["AK_SESSION__REDIS__URL"].path == ("redis", "url")
    assert variables["AK_SESSION__REDIS__URL"].default == "redis://localhost:6379"
    assert {name for name, variable in variables.items() if variable.secret} == {
        "AK_SESSION__REDIS__URL",
        "AK_SESSION__REDIS__PASSWORD",
        "AK_SESSION__REDIS__SENTINEL__PASSWORD",
        "AK_SESSION__ENCRYPTION__KEYS",
    }
    assert all(variable.description for variable in variables.values())


def test_yaml_is_imported_only_for_a_file_with_a_session_section() -> None:
    code = "import sys; from agent_sessions.settings import Settings; Settings.load(); print('yaml' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
