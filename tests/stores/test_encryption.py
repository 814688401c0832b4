"""Encryption at rest: what lies in the store, and what happens to what can't be read."""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pydantic import SecretStr, ValidationError

from agent_sessions import MemoryStore, SessionManager, Settings, codec
from agent_sessions.errors import DecryptionError, FormatTooNewError, InvalidError, SessionError
from agent_sessions.settings import EncryptionSettings
from agent_sessions.stores import open_store
from agent_sessions.stores.base import (
    CollectionChange,
    Commit,
    EntryRange,
    Key,
    LogChange,
    LogWanted,
    Part,
    Store,
    Wanted,
)
from agent_sessions.stores.encryption import EncryptedStore, Keyring

OLD, NEW, OTHER = (secrets.token_urlsafe(32) for _ in range(3))
OVERHEAD = 38


class Spot(NamedTuple):
    """A place where a store keeps one piece of data."""

    sort: str
    namespace: str = "default"
    name: str = "cart"
    entry: str = ""
    key: Key = Key("acme", "session", "s-1")

    async def write(self, store: Store, data: bytes) -> None:
        part = Part(self.namespace, self.name)
        commit = Commit(id=secrets.token_bytes(8), owner="test", expected=None)
        match self.sort:
            case "value":
                commit.values = {part: data}
            case "item":
                commit.logs = {part: LogChange(append=[data])}
            case "entry":
                commit.collections = {part: CollectionChange(entries={self.entry: data})}
            case "field":
                commit.fields = {self.name: data}
        await store.commit(self.key, commit)

    async def read(self, store: Store) -> bytes:
        """What is there; of a log, its last item."""
        part = Part(self.namespace, self.name)
        wanted = Wanted(logs=[LogWanted(part)], entries=[(part, self.entry)], ranges=[EntryRange(part)])
        opened = await store.open(self.key, wanted=wanted)
        assert opened.row is not None
        match self.sort:
            case "value":
                return opened.values[self.namespace][self.name]
            case "item":
                return opened.logs[0].items[-1]
            case "entry":
                assert opened.entries[0] is not None
                assert dict(opened.ranges[0])[self.entry] is not None
                return opened.entries[0]
            case _:
                return (opened.row.fields or {})[self.name]


VALUE = Spot("value")
SPOTS = [VALUE, Spot("item"), Spot("entry", entry="a/1"), Spot("field")]


@pytest.fixture
def inner() -> MemoryStore:
    """What the backend holds."""
    return MemoryStore()


def encrypted(inner: Store, *keys: str, accept_plaintext: bool = False) -> EncryptedStore:
    return EncryptedStore(inner, Keyring(keys or (OLD,), accept_plaintext=accept_plaintext))


def refused(data: bytes) -> SessionError:
    """The error that comes of reading what a store has handed out."""
    with pytest.raises(SessionError) as caught:
        codec.decode(data)
    return caught.value


class TestWhatIsStored:
    @pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.sort)
    async def test_it_is_the_documented_layout(self, inner: MemoryStore, spot: Spot) -> None:
        await spot.write(encrypted(inner), b"milk")

        stored = await spot.read(inner)

        assert by_hand(OLD, spot, stored) == b"milk"
        assert stored[:2] == b"\xc1\x01"
        assert len(stored) == len(b"milk") + OVERHEAD

    async def test_it_stays_readable(self, inner: MemoryStore) -> None:
        """Written by the first version: the format must not change under those who have data in it."""
        key = base64.b64encode(bytes(range(32))).decode()
        spot = Spot("entry", "langgraph", "checkpoints", "a/1", Key("acme", "session", "Grüße"))
        await spot.write(inner, bytes.fromhex(FIRST_VERSION))

        assert await spot.read(encrypted(inner, key)) == b"milk"

    @pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.sort)
    @pytest.mark.parametrize("data", [b"", b"\xc1", b"\xc1\0\1", bytes(range(256))])
    async def test_any_bytes_come_back(self, inner: MemoryStore, spot: Spot, data: bytes) -> None:
        store = encrypted(inner)
        await spot.write(store, data)

        assert await spot.read(store) == data

    async def test_the_same_is_never_stored_as_the_same_twice(self, inner: MemoryStore) -> None:
        items = Spot("item")
        for _ in range(3):
            await items.write(encrypted(inner), b"milk")

        opened = await inner.open(items.key, wanted=Wanted(logs=[LogWanted(Part("default", "cart"))]))

        assert len(set(opened.logs[0].items)) == 3

    async def test_the_largest_value_fits(self, inner: MemoryStore) -> None:
        largest = "x" * (codec.MAX_VALUE_BYTES - 5)
        async with SessionManager(encrypted(inner)).open("s") as session:
            session.set("large", largest)

        async with SessionManager(encrypted(inner)).read("s") as session:
            assert session.get("large") == largest

    async def test_listings_are_decrypted(self, inner: MemoryStore) -> None:
        store = encrypted(inner)
        for id in ("a", "b"):
            await Spot("field", key=Key("acme", "run", id)).write(store, id.encode())

        page = await store.find("acme", "run")

        assert {found.id: found.row.fields for found in page.found} == {"a": {"cart": b"a"}, "b": {"cart": b"b"}}

    async def test_threads_share_a_key(self, inner: MemoryStore) -> None:
        box = Keyring([OLD]).box(VALUE.key)

        def work(number: int) -> bool:
            data = b"%d" % number * 50
            return all(box.unseal(b"V", box.seal(b"V", data)) == data for _ in range(300))

        assert all(await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(8))))


def by_hand(key: str, spot: Spot, stored: bytes) -> bytes:
    """Decrypt as the documentation says, without our code."""
    master = base64.urlsafe_b64decode(key + "=")

    def derive(info: bytes) -> bytes:
        return HKDFExpand(hashes.SHA256(), 32, info).derive(master)

    def texts(*given: str) -> bytes:
        return b"".join(len(text.encode()).to_bytes(4, "big") + text.encode() for text in given)

    part = texts(spot.namespace, spot.name)
    places = {
        "value": b"V" + part,
        "item": b"L" + part,
        "entry": b"E" + part + texts(spot.entry),
        "field": b"F" + texts(spot.name),
    }
    key_id = derive(b"agent-sessions key id")[:8]
    assert stored[2:10] == key_id
    subkey = derive(b"agent-sessions subkey" + texts(*spot.key))
    bound_to = b"\xc1\x01" + key_id + texts(*spot.key) + places[spot.sort]
    return AESGCM(subkey).decrypt(stored[10:22], stored[22:], bound_to)


FIRST_VERSION = "c101bacd0ffc0c79183ef6e563cdf1acae37ed6fac963699d7b964a241ff818bbe73a1f48d041441d8d1"


class TestTampering:
    """Whoever can write to the backend can't make a reader take anything for what was stored."""

    async def test_every_flipped_bit_is_noticed(self, inner: MemoryStore) -> None:
        store = encrypted(inner)
        await VALUE.write(store, codec.encode("milk"))
        stored = await VALUE.read(inner)
        for position in range(len(stored) * 8):
            damaged = bytearray(stored)
            damaged[position // 8] ^= 1 << position % 8
            await VALUE.write(inner, bytes(damaged))
            error = refused(await VALUE.read(store))
            assert isinstance(error, DecryptionError | FormatTooNewError), position

    async def test_every_cut_is_noticed(self, inner: MemoryStore) -> None:
        store = encrypted(inner)
        await VALUE.write(store, codec.encode("milk"))
        stored = await VALUE.read(inner)
        for length in range(len(stored)):
            for cut in (stored[:length], stored[length + 1 :]):
                await VALUE.write(inner, cut)
                error = refused(await VALUE.read(store))
                assert isinstance(error, DecryptionError | FormatTooNewError), length

    @pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.sort)
    @pytest.mark.parametrize(
        "elsewhere",
        [
            {"key": Key("acme", "session", "s-2")},
            {"key": Key("umbrella", "session", "s-1")},
            {"key": Key("acme", "run", "s-1")},
            {"key": Key("acmes", "session", "-1")},
            {"namespace": "crewai"},
            {"name": "basket"},
            {"namespace": "defaultc", "name": "art"},
            {"entry": "a/2"},
            {"sort": "value"},
            {"sort": "item"},
            {"sort": "entry"},
            {"sort": "field"},
        ],
        ids=str,
    )
    async def test_what_is_moved_is_noticed(self, inner: MemoryStore, spot: Spot, elsewhere: dict[str, Any]) -> None:
        store, target = encrypted(inner), spot._replace(**elsewhere)
        if target == spot or (spot.sort != "entry" and "entry" in elsewhere):
            return  # the same place
        if spot.sort == "field" and elsewhere == {"namespace": "crewai"}:
            return
        await spot.write(store, codec.encode("milk"))
        await target.write(inner, await spot.read(inner))

        error = refused(await target.read(store))

        assert error.code == "DECRYPTION_FAILED"
        assert "moved here from another place" in error.message

    async def test_plain_data_is_refused(self, inner: MemoryStore) -> None:
        for spot in SPOTS:
            await spot.write(inner, codec.encode("milk"))

            error = refused(await spot.read(encrypted(inner)))

            assert error.code == "DECRYPTION_FAILED"
            assert "AK_SESSION__ENCRYPTION__ACCEPT_PLAINTEXT" in error.message

    async def test_a_refusal_can_not_be_stored(self, inner: MemoryStore) -> None:
        for stored in (b"\xc1\0\3", b"\xc1", b"\xc1\0", b"\xc1\1"):
            for accept_plaintext in (False, True):
                await VALUE.write(inner, stored)

                error = refused(await VALUE.read(encrypted(inner, accept_plaintext=accept_plaintext)))

                assert "is not what was encrypted for this place" in error.message

    async def test_what_was_there_before_is_not_noticed(self, inner: MemoryStore) -> None:
        """A limit, and documented: an older ciphertext of the same place is as genuine as the newest."""
        store, items = encrypted(inner), Spot("item")
        await VALUE.write(store, b"old")
        old = await VALUE.read(inner)
        await VALUE.write(store, b"new")
        await VALUE.write(inner, old)
        await items.write(store, b"first")
        await items.write(inner, await items.read(inner))

        assert await VALUE.read(store) == b"old"
        assert await items.read(store) == b"first"


class TestKeys:
    async def test_the_first_writes_and_all_read(self, inner: MemoryStore) -> None:
        spots = [VALUE._replace(name=name) for name in ("a", "b")]
        await spots[0].write(encrypted(inner, OLD), b"milk")
        rotated = encrypted(inner, NEW, OLD)
        await spots[1].write(rotated, b"eggs")

        assert [await spot.read(rotated) for spot in spots] == [b"milk", b"eggs"]
        assert by_hand(NEW, spots[1], await spots[1].read(inner)) == b"eggs"

    async def test_a_missing_key_is_named_by_its_id(self, inner: MemoryStore) -> None:
        await VALUE.write(encrypted(inner, OLD), codec.encode("milk"))

        error = refused(await VALUE.read(encrypted(inner, NEW, OTHER)))

        [id] = Keyring([OLD]).key_ids
        assert error.code == "DECRYPTION_FAILED"
        assert f"with the key {id}, which is none of those configured here" in error.message
        assert "AK_SESSION__ENCRYPTION__KEYS" in error.message

    async def test_without_any_keys_it_is_recognised(self, inner: MemoryStore) -> None:
        for spot in SPOTS:
            await spot.write(encrypted(inner, OLD), codec.encode("milk"))

            error = refused(await spot.read(inner))

            assert error.code == "DECRYPTION_FAILED"
            assert "no keys are configured here" in error.message
            assert Keyring([OLD]).key_ids[0] in error.message

    async def test_a_newer_format_is_refused_as_such(self, inner: MemoryStore) -> None:
        for stored in (b"\xc1\x02" + bytes(50), b"\xc1\xff"):
            await VALUE.write(inner, stored)
            for store in (inner, encrypted(inner), encrypted(inner, accept_plaintext=True)):
                assert refused(await VALUE.read(store)).code == "FORMAT_TOO_NEW"

    async def test_plain_data_is_read_if_that_is_asked_for(self, inner: MemoryStore) -> None:
        going_live = encrypted(inner, accept_plaintext=True)
        for spot in SPOTS:
            for data in (b"", codec.encode("milk")):
                await spot.write(inner, data)
                assert await spot.read(going_live) == data
            await spot.write(going_live, b"eggs")
            assert by_hand(OLD, spot, await spot.read(inner)) == b"eggs"

    @pytest.mark.parametrize("written", [str, lambda key: key + "=", lambda key: f" {key}\n", "standard"])
    async def test_keys_are_read_in_any_base64(self, inner: MemoryStore, written: Callable[[str], str] | str) -> None:
        key = "-_" + OLD[2:]
        given = key.replace("-", "+").replace("_", "/") + "=" if isinstance(written, str) else written(key)
        assert Keyring([given]).key_ids == Keyring([key]).key_ids

    @pytest.mark.parametrize(
        ("keys", "problem"),
        [
            ([], "at least one key"),
            (["hunter2"], "key 1 is not 32 bytes in base64"),
            ([OLD, "hunter2!"], "key 2 is not 32 bytes in base64: this is no base64"),
            ([OLD, ""], "key 2 is not 32 bytes in base64: these are 0"),
            ([base64.b64encode(b"hunter2" * 3).decode()], "these are 21"),
            ([base64.b64encode(b"hunter2" * 5).decode()], "these are 35"),
            ([OLD, "hünter2"], "this is no base64"),
            ([OLD, NEW, OLD + "="], "key 3 is the same as key 1"),
        ],
    )
    def test_wrong_keys_are_refused_and_never_shown(self, keys: list[str], problem: str) -> None:
        with pytest.raises(InvalidError, match=problem) as caught:
            Keyring(keys)
        shown = "".join(traceback.format_exception(caught.value))
        assert caught.value.code == "INVALID_ENCRYPTION_KEYS"
        assert not any(key and key in shown for key in keys)
        if keys:
            with pytest.raises(ValidationError, match=problem) as wrong:
                EncryptionSettings(keys=tuple(map(SecretStr, keys)))
            assert not any(key and key in str(wrong.value) for key in keys)

    def test_no_repr_shows_a_key(self) -> None:
        keyring = Keyring([OLD])
        settings = Settings(encryption=EncryptionSettings(keys=(SecretStr(OLD),)))
        store = EncryptedStore(MemoryStore(), keyring)
        for shown in (repr(keyring), repr(store), repr(keyring.box(VALUE.key)), repr(settings), str(vars(store))):
            assert OLD not in shown
        assert repr(keyring) == f"Keyring({keyring.key_ids[0]})"
        master = base64.urlsafe_b64decode(OLD + "=")
        assert bytes.fromhex(keyring.key_ids[0]) not in master
        assert bytes.fromhex(keyring.key_ids[0]) == hmac.digest(master, b"agent-sessions key id\1", "sha256")[:8]


class TestInSessions:
    """One piece that can't be read is an error where it is read, and nowhere else."""

    async def test_one_unreadable_value_is_in_the_way_of_no_other(self, inner: MemoryStore) -> None:
        manager = SessionManager(encrypted(inner, NEW))
        lost = VALUE._replace(name="lost", key=Key("default", "session", "s-1"))
        await lost.write(encrypted(inner, OLD), codec.encode("bread"))
        before = await lost.read(inner)

        async with manager.open("s-1") as session:
            session.set("cart", "milk")
            assert session.keys() == ["cart", "lost"]
            with pytest.raises(DecryptionError, match="value 'lost' in namespace 'default' can't be read") as caught:
                session.get("lost")
        async with manager.open("s-1") as session:
            assert session.get("cart") == "milk"

        assert caught.value.field == "lost"
        assert await lost.read(inner) == before

    async def test_an_unreadable_item_is_named_and_the_rest_is_read(self, inner: MemoryStore) -> None:
        key = Key("default", "session", "s-1")
        for keys, text in ((OLD, "lost"), (NEW, "milk"), (NEW, "eggs")):
            await Spot("item", key=key).write(encrypted(inner, keys), codec.encode(text))

        async with SessionManager(encrypted(inner, NEW)).open("s-1") as session:
            log = session.namespace("default").log("cart")
            assert await log.read(limit=2) == ["milk", "eggs"]
            with pytest.raises(DecryptionError, match="item 0 of the log can't be read"):
                await log.read()
            await log.append(["jam"])

    async def test_an_unreadable_entry_is_named_and_the_rest_is_read(self, inner: MemoryStore) -> None:
        key = Key("default", "session", "s-1")
        await Spot("entry", entry="a", key=key).write(encrypted(inner, OLD), codec.encode("lost"))
        await Spot("entry", entry="b", key=key).write(encrypted(inner, NEW), codec.encode("milk"))

        async with SessionManager(encrypted(inner, NEW)).open("s-1") as session:
            carts = session.namespace("default").collection("cart")
            assert await carts.get("b") == "milk"
            with pytest.raises(DecryptionError, match="entry 'a' of 'cart' in namespace 'default' can't be read"):
                await carts.get("a")

    async def test_a_session_opens_whose_metadata_is_unreadable(self, inner: MemoryStore) -> None:
        async with SessionManager(encrypted(inner, OLD)).open("s-1", metadata={"device": "web"}) as session:
            session.set("cart", "milk")
        manager = SessionManager(encrypted(inner, NEW))

        async with manager.open("s-1") as session:
            session.set("cart", "eggs")
            with pytest.raises(DecryptionError, match="the metadata of session 's-1' can't be read"):
                session.metadata["device"]
        with pytest.raises(DecryptionError, match="the metadata of session 's-1' can't be read"):
            await manager.get("s-1")

        async with SessionManager(encrypted(inner, OLD, NEW)).read("s-1") as snapshot:
            assert snapshot.record is not None
            assert snapshot.record.metadata == {"device": "web"}

    async def test_no_error_shows_a_key_or_what_was_stored(self, inner: MemoryStore) -> None:
        await VALUE._replace(key=Key("default", "session", "s-1")).write(encrypted(inner, OLD), codec.encode("milk"))
        async with SessionManager(encrypted(inner, NEW)).open("s-1") as session:
            try:
                session.get("cart")
            except DecryptionError as error:
                shown = "".join(traceback.format_exception(error))
        assert "milk" not in shown
        assert OLD not in shown
        assert NEW not in shown


class TestSettings:
    def test_keys_put_encryption_before_the_store(self) -> None:
        keys = (SecretStr(NEW), SecretStr(OLD))
        store = open_store(Settings(encryption=EncryptionSettings(keys=keys)))

        assert isinstance(store, EncryptedStore)
        assert isinstance(store.inner, MemoryStore)
        assert store.keyring.key_ids == Keyring([NEW, OLD]).key_ids
        assert isinstance(open_store(Settings()), MemoryStore)

    @pytest.mark.parametrize("given", ['["{}", "{}"]', "{},{}", "{}, {}"])
    def test_the_variable_is_a_list(self, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
        monkeypatch.setenv("AK_SESSION__ENCRYPTION__KEYS", given.format(NEW, OLD))
        monkeypatch.setenv("AK_SESSION__ENCRYPTION__ACCEPT_PLAINTEXT", "true")

        encryption = Settings.load().encryption

        assert Keyring([key.get_secret_value() for key in encryption.keys]).key_ids == Keyring([NEW, OLD]).key_ids
        assert encryption.accept_plaintext

    @pytest.mark.parametrize("given", ["hunter2", '["hunter2"]', '["hunter2"', '{"hunter2": 1}', "[1]", "OLD,hunter2"])
    def test_a_wrong_one_is_named_and_never_shown(self, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
        monkeypatch.setenv("AK_SESSION__ENCRYPTION__KEYS", given.replace("OLD", OLD))

        with pytest.raises(InvalidError) as caught:
            Settings.load()

        assert caught.value.field == "AK_SESSION__ENCRYPTION__KEYS"
        shown = "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in shown
        assert OLD not in shown

    def test_without_the_package_it_says_what_to_install(self) -> None:
        code = (
            "import sys; sys.modules['cryptography'] = None\n"
            "from agent_sessions import SessionManager\n"
            "from agent_sessions.errors import InvalidError\n"
            "try: SessionManager.from_env()\n"
            "except InvalidError as error: print(error)"
        )
        environment = {"AK_SESSION__ENCRYPTION__KEYS": OLD}
        said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)

        assert "pip install 'agent-sessions-runtime[encryption]'" in said
        assert OLD not in said


def test_importing_the_library_does_not_import_cryptography() -> None:
    code = "import sys, agent_sessions; print('cryptography' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
