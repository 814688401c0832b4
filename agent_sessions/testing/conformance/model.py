"""Any sequence of operations leads to what a model made of plain dictionaries says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec import UNSET

from agent_sessions.clock import Clock
from agent_sessions.errors import (
    SessionBusyError,
    SessionConflictError,
    SessionEndedError,
    SessionError,
    SessionExpiredError,
    SessionNotFoundError,
)
from agent_sessions.stores.base import (
    ABSENT,
    Amend,
    CollectionChange,
    Commit,
    Committed,
    EntryRange,
    Key,
    Known,
    Lease,
    LogChange,
    LogHead,
    LogWanted,
    Opened,
    Order,
    Part,
    Row,
    Store,
    Version,
    Wanted,
)
from agent_sessions.stores.lifetime import Course, Lifetime, Own, Stamps, Status
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import Harness, lease, new_id

PARTS = [Part("a", "x"), Part("a", "y"), Part("b", "x")]
OWNERS = ["us", "them"]
ENTRY_NAMES = ["1", "1/", "1/2", "2"]


@dataclass
class Life:
    """A key from its making to its end, as plain data."""

    started_at: int
    own: Own = field(default_factory=dict)
    expires_at: int | None = None
    commits: list[Version] = field(default_factory=list)
    active_at: int = 0
    ended_at: int | None = None
    lifetime: Lifetime = field(default_factory=Lifetime)
    stamps: Stamps = field(default_factory=lambda: Stamps(None, None, None))
    tag: bytes = b""
    counters: dict[str, int] = field(default_factory=dict)
    belongs_to: str | None = None
    fields: dict[str, bytes] = field(default_factory=dict)
    values: dict[Part, bytes] = field(default_factory=dict)
    logs: dict[Part, list[tuple[int, bytes]]] = field(default_factory=dict)
    assigned: dict[Part, int] = field(default_factory=dict)
    collections: dict[Part, dict[str, bytes]] = field(default_factory=dict)

    def apply(self, commit: Commit, now: int) -> None:
        """The meaning of a commit."""
        self.commits.append(Version(len(self.commits) + 1, commit.id))
        if not commit.maintenance:
            self.active_at = now
            self.stamp(commit.lifetime)
        if commit.hold_ms is not None:
            self.prolong(now + commit.hold_ms)
        if commit.fields or len(self.commits) == 1:
            self.tag = commit.id
        add(self.counters, commit.counters)
        self.belongs_to = self.belongs_to or commit.belongs_to
        merge(self.fields, commit.fields)
        merge(self.values, commit.values)
        for part, change in commit.logs.items():
            items = self.logs.setdefault(part, [])
            del items[0 if change.clear else max(0, len(items) - change.pop) :]
            for data in change.append:
                self.assigned[part] = self.assigned.get(part, 0) + 1
                items.append((self.assigned[part], data))
        for part, changed in commit.collections.items():
            entries = self.collections.setdefault(part, {})
            for name in list(entries):
                if any(name.startswith(prefix) for prefix in changed.delete_prefixes):
                    del entries[name]
            merge(entries, changed.entries)

    def amend(self, amend: Amend, now: int) -> None:
        """The meaning of an amendment."""
        if amend.own is not None:
            self.own = amend.own
        if amend.expires_at is not UNSET:
            self.expires_at = amend.expires_at
        if amend.end:
            self.ended_at = self.stamps.ends_at if self.stamps.status(now) == "ended" else now
        if amend.activity:
            self.active_at = now
        self.stamp(self.lifetime if amend.lifetime is None else amend.lifetime)
        if amend.fields or amend.end or amend.own is not None or amend.expires_at is not UNSET:
            self.tag = amend.id
        merge(self.fields, amend.fields)
        add(self.counters, amend.counters)

    @property
    def course(self) -> Course:
        """What happened to it."""
        return Course(self.started_at, self.active_at, self.ended_at, self.expires_at)

    def stamp(self, lifetime: Lifetime) -> None:
        """What an activity, or another lifetime, makes of the stamps."""
        self.lifetime = lifetime.but(self.own)
        self.stamps = self.course.stamps(self.lifetime)

    def prolong(self, till: int) -> None:
        """Somebody works on it until then."""
        self.stamps = self.course.prolonged(self.stamps, self.lifetime, till)

    def head(self, part: Part) -> LogHead:
        """Where a log stands."""
        items = self.logs.get(part)
        return LogHead(len(items), items[-1][0]) if items else LogHead(0, 0)

    def by_namespace(self) -> dict[str, dict[str, bytes]]:
        """The values as a store tells them."""
        told: dict[str, dict[str, bytes]] = {}
        for part, data in self.values.items():
            told.setdefault(part.namespace, {})[part.name] = data
        return told


@dataclass
class Seen:
    """What a client saw once, and may still have in its cache."""

    known: Known
    life: Life


lifetimes = st.builds(
    Lifetime,
    idle_ms=st.sampled_from([None, None, 2_000]),
    end_ms=st.sampled_from([None, None, 3_000]),
    absolute_ms=st.sampled_from([None, None, None, 20_000]),
    ttl_ms=st.sampled_from([None, 5_000, 60_000]),
    retention_ms=st.sampled_from([None, 0, 10_000]),
)
owns = st.dictionaries(st.sampled_from(Lifetime._fields), st.sampled_from([None, 1_000, 30_000]), max_size=2)
ends = st.sampled_from([None, None, 4_000, 40_000])

commits = st.fixed_dictionaries(
    {
        "values": st.dictionaries(st.sampled_from(PARTS), st.none() | st.binary(max_size=2), max_size=2),
        "logs": st.dictionaries(
            st.sampled_from(PARTS[1:]),
            st.builds(
                LogChange,
                clear=st.integers(0, 9).map(lambda number: number == 0),
                pop=st.sampled_from([0, 0, 0, 1, 2]),
                append=st.lists(st.binary(max_size=2), max_size=3),
            ),
            max_size=2,
        ),
        "collections": st.dictionaries(
            st.sampled_from(PARTS[1:]),
            st.builds(
                CollectionChange,
                delete_prefixes=st.lists(st.sampled_from(["1", "1/"]), max_size=1),
                entries=st.dictionaries(st.sampled_from(ENTRY_NAMES), st.none() | st.binary(max_size=2), max_size=3),
            ),
            max_size=1,
        ),
        "fields": st.dictionaries(st.sampled_from(["f", "g"]), st.none() | st.binary(max_size=2), max_size=1),
        "lifetime": lifetimes,
        "hold_ms": st.sampled_from([None, None, 3_000]),
        "belongs_to": st.sampled_from([None, "ann", "bob"]),
        "own": owns,
        "expires_at": ends,
        "counters": st.dictionaries(st.sampled_from("mn"), st.integers(1, 3), max_size=1),
        "maintenance": st.integers(0, 4).map(lambda number: number == 0),
    }
)


class Machine(RuleBasedStateMachine):
    """Drives a store and the model with the same operations. Two keys, two owners, no queue."""

    def __init__(self, make_store: Callable[[Clock], Store]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.store = make_store(self.clock)
        tenant = f"tenant-{new_id().hex()}"
        self.keys = [Key(tenant, "session", "one"), Key(tenant, "session", "two")]
        self.lives: dict[Key, Life] = {}
        self.leases: dict[Key, Lease] = {}
        self.sent: dict[Key, list[Commit]] = {key: [] for key in self.keys}
        self.seen: dict[Key, list[Seen]] = {key: [] for key in self.keys}

    def teardown(self) -> None:
        """Close the store and its loop."""
        self.runner.run(self.store.aclose())
        self.runner.close()

    # ------------------------------------------------------------------------ what time does to the model

    def life(self, key: Key) -> Life | None:
        """The present life of a key."""
        life = self.lives.get(key)
        if life is not None and life.stamps.gone_at is not None and life.stamps.gone_at <= self.clock.now_ms():
            del self.lives[key]
            return None
        return life

    def lease(self, key: Key) -> Lease | None:
        """The live lease on a key."""
        held = self.leases.get(key)
        return held if held is not None and held.until > self.clock.now_ms() else None

    # ------------------------------------------------------------------------ rules

    @rule(number=st.integers(0, 1), owner=st.sampled_from(OWNERS), expect=st.sampled_from("vvvvnnao"), changes=commits)
    def commit(self, number: int, owner: str, expect: str, changes: dict[str, Any]) -> None:
        """Expecting the version there is (v), none (n), absence (a), or an old version (o)."""
        key = self.keys[number]
        life = self.life(key)
        version = life.commits[-1] if life is not None else ABSENT
        old = self.seen[key][0].known.version if self.seen[key] else Version(1, new_id())
        expected = {"v": version, "n": None, "a": ABSENT, "o": old}[expect]
        commit = Commit(id=new_id(), owner=owner, expected=expected, **deepcopy(changes))
        commit.expires_at = None if commit.expires_at is None else self.clock.now_ms() + commit.expires_at
        commit.maintenance = commit.maintenance and expect == "v" and life is not None
        held = self.lease(key)
        allowed: list[type[SessionError]] = []
        if expected is not None and expected != version:
            allowed.append(SessionNotFoundError if life is None else SessionConflictError)
        if held is not None and held.owner != owner:
            allowed.append(SessionBusyError)
        if life is not None and not commit.maintenance:
            allowed += self.ended(life)
        self.sent[key].append(commit)
        if allowed:
            self.expect_refusal(key, commit, tuple(allowed))
            return
        committed = self.runner.run(self.store.commit(key, commit))
        now = self.clock.now_ms()
        if life is None:
            life = self.lives[key] = Life(now, commit.own, commit.expires_at)
        life.apply(commit, now)
        self.leases.pop(key, None)
        if commit.hold_ms is not None:
            self.leases[key] = Lease(owner, now if held is None else held.since, now + commit.hold_ms)
        assert not committed.repeated
        assert committed.previous == version
        assert committed.version == life.commits[-1]
        assert committed.log_heads == {part: life.head(part) for part in commit.logs}
        self.remember(key, committed, life)

    def ended(self, life: Life) -> list[type[SessionError]]:
        """The error that refuses what is done to a life that has ended."""
        if life.stamps.status(self.clock.now_ms()) != "ended":
            return []
        by_the_clock = life.stamps.ends_at == life.course.expiry(life.lifetime)
        return [SessionExpiredError if by_the_clock else SessionEndedError]

    @rule(
        number=st.integers(0, 1),
        tag=st.sampled_from("tnno"),
        changes=st.fixed_dictionaries(
            {
                "activity": st.booleans(),
                "end": st.integers(0, 4).map(lambda number: number == 0),
                "lifetime": st.none() | lifetimes,
                "own": st.none() | st.none() | owns,
                "expires_at": st.just(UNSET) | ends,
                "fields": st.dictionaries(st.sampled_from(["f", "g"]), st.none() | st.binary(max_size=2), max_size=1),
                "counters": st.dictionaries(st.sampled_from("mn"), st.integers(1, 3), max_size=1),
            }
        ),
    )
    def amend(self, number: int, tag: str, changes: dict[str, Any]) -> None:
        """Change the record alone, expecting the tag there is (t), none (n), or another (o)."""
        key, now = self.keys[number], self.clock.now_ms()
        life = self.life(key)
        amend = Amend(id=new_id(), **deepcopy(changes))
        if isinstance(amend.expires_at, int):
            amend.expires_at += now
        if tag != "n":
            amend.expected_tag = life.tag if life is not None and tag == "t" else new_id()
        more = amend.activity or amend.fields or amend.counters or amend.own is not None or amend.expires_at != UNSET
        done = life is not None and life.ended_at is not None and amend.end
        if life is None:
            allowed: list[type[SessionError]] = [SessionNotFoundError]
        else:
            allowed = self.ended(life) if more and not amend.end else []
            allowed += [SessionConflictError] if tag == "o" and not done else []
        try:
            amended = self.runner.run(self.store.amend(key, amend))
        except tuple(allowed):
            return
        assert not allowed
        assert life is not None
        assert amended.changed == (not done)
        if not done:
            life.amend(amend, now)
            if (held := self.lease(key)) is not None:
                life.prolong(held.until)
        if not done and self.life(key) is not None:  # it may be gone by that
            assert not self.runner.run(self.store.amend(key, amend)).changed
        assert amended.row.fields == life.fields
        assert amended.now == now
        self.compare_row(amended.row, life)

    def expect_refusal(self, key: Key, commit: Commit, allowed: tuple[type[SessionError], ...]) -> None:
        """The commit has to fail, for one of these reasons."""
        try:
            self.runner.run(self.store.commit(key, commit))
        except allowed:
            return
        raise AssertionError(f"the commit was stored, instead of {allowed}")

    def remember(self, key: Key, committed: Committed, life: Life) -> None:
        """What the client that committed knows now."""
        assert committed.row is not None
        self.seen[key].append(Seen(Known(committed.version, committed.row.record_tag), deepcopy(life)))

    @rule(number=st.integers(0, 1), back=st.integers(0, 9))
    def send_again(self, number: int, back: int) -> None:
        """A commit that was sent before: stored ones are recognised, and nothing changes."""
        key = self.keys[number]
        if back >= len(self.sent[key]):
            return
        commit = self.sent[key][-1 - back]
        life = self.life(key)
        made = [version for version in (life.commits if life is not None else []) if version.commit_id == commit.id]
        if made:
            again = self.runner.run(self.store.commit(key, commit))
            assert again.repeated
            assert again.version == made[0]
        status = self.runner.run(self.store.commit_status(key, commit.id, since=commit.expected or ABSENT))
        assert (status == "stored") == bool(made)

    @rule(number=st.integers(0, 1), owner=st.sampled_from(OWNERS), ms=st.sampled_from([1_000, 10_000]))
    def take(self, number: int, owner: str, ms: int) -> None:
        """Take a lease."""
        key, now = self.keys[number], self.clock.now_ms()
        held = self.lease(key)
        opened = self.runner.run(self.store.open(key, lease=lease(owner, ms=ms)))
        assert opened.granted == (held is None or held.owner == owner)
        if opened.granted:
            self.leases[key] = Lease(owner, now if held is None else held.since, now + ms)
        assert opened.lease == self.lease(key)

    @rule(number=st.integers(0, 1), owner=st.sampled_from(OWNERS), ms=st.sampled_from([1_000, 10_000]))
    def renew(self, number: int, owner: str, ms: int) -> None:
        """Renew a lease."""
        key, now = self.keys[number], self.clock.now_ms()
        held, life = self.lease(key), self.life(key)
        renewed = self.runner.run(self.store.renew(key, owner, ms))
        assert renewed == (held is not None and held.owner == owner)
        if held is not None and renewed:
            self.leases[key] = Lease(owner, held.since, now + ms)
            if life is not None:
                life.prolong(now + ms)

    @rule(number=st.integers(0, 1), owner=st.sampled_from(OWNERS))
    def release(self, number: int, owner: str) -> None:
        """Release a lease."""
        key = self.keys[number]
        self.runner.run(self.store.release(key, owner))
        held = self.lease(key)
        if held is not None and held.owner == owner:
            del self.leases[key]

    @rule(number=st.integers(0, 1))
    def unlock(self, number: int) -> None:
        """Break a lease."""
        key = self.keys[number]
        assert self.runner.run(self.store.unlock(key)) == self.lease(key)
        self.leases.pop(key, None)

    @rule(seconds=st.sampled_from([0.001, 0.999, 1.0, 2.5, 7.0]))
    def advance(self, seconds: float) -> None:
        """Time goes by."""
        self.clock.advance(seconds)

    @rule(number=st.integers(0, 1), sure=st.integers(0, 3))
    def delete(self, number: int, sure: int) -> None:
        """Delete a key, now and then. Its lease goes, too: who asks next, gets it."""
        key = self.keys[number]
        if sure:
            return
        write_id = new_id()
        life = self.life(key)
        existed = self.runner.run(self.store.delete(key, write_id))
        assert existed == (life is not None)
        assert self.runner.run(self.store.delete(key, write_id)) == existed
        self.runner.run(self.store.unlock(key))
        self.leases.pop(key, None)
        self.lives.pop(key, None)

    @rule(number=st.integers(0, 1), back=st.integers(0, 19), limit=st.sampled_from([None, 0, 1, 3]))
    def read_on(self, number: int, back: int, limit: int | None) -> None:
        """Read with a cache of some earlier time, of this life or a former one."""
        key = self.keys[number]
        if back < len(self.seen[key]):
            self.check(key, self.seen[key][-1 - back], limit)

    @rule(number=st.integers(0, 1))
    def read(self, number: int) -> None:
        """Read without any knowledge."""
        self.check(self.keys[number], None, None)

    @rule(
        limit=st.integers(1, 3),
        user=st.sampled_from([None, "ann", "bob"]),
        status=st.sampled_from([None, "active", "idle", "ended"]),
        order=st.sampled_from(["activity", "start"]),
    )
    def find_and_count(self, limit: int, user: str | None, status: Status | None, order: Order) -> None:
        """Find and count."""
        tenant = self.keys[0].tenant
        lives = [(life, key) for key in self.keys if (life := self.life(key)) is not None]
        expected = [
            (life.active_at if order == "activity" else life.started_at, key.id, life.fields)
            for life, key in lives
            if user in (None, life.belongs_to)
            if status in (None, life.stamps.status(self.clock.now_ms()))
        ]
        found, cursor, first = [], None, True
        while first or cursor is not None:
            page = self.runner.run(
                self.store.find(
                    tenant, "session", belongs_to=user, status=status, order=order, limit=limit, cursor=cursor
                )
            )
            for place in page.found:
                at = place.row.active_at if order == "activity" else place.row.started_at
                found.append((at, place.id, place.row.fields))
            assert len(found) <= len(expected)
            cursor, first = page.next, False
        assert found == sorted(expected, key=lambda place: place[:2], reverse=True)
        count = self.store.count(tenant, "session", belongs_to=user, status=status)
        assert self.runner.run(count) == len(expected)

    @rule(limit=st.integers(1, 3))
    def run_out(self, limit: int) -> None:
        """What has ended and nobody ended."""
        now = self.clock.now_ms()
        lives = [(life, key) for key in self.keys if (life := self.life(key)) is not None]
        expected = [
            (life.stamps.ends_at, key.id)
            for life, key in lives
            if life.ended_at is None and life.stamps.status(now) == "ended"
        ]
        found = self.runner.run(self.store.run_out(self.keys[0].tenant, "session", limit=limit))
        assert [(place.row.ends_at, place.id) for place in found.found] == sorted(expected)[:limit]

    @rule(limit=st.integers(1, 3))
    def scan(self, limit: int) -> None:
        """Scan. Other tests may leave keys of their own."""
        found, cursor, first = set[Key](), None, True
        while first or cursor is not None:
            page = self.runner.run(self.store.scan(limit=limit, cursor=cursor))
            found.update(key for key in page.keys if key.tenant == self.keys[0].tenant)
            cursor, first = page.next, False
        assert found == {key for key in self.keys if self.life(key) is not None}

    # ------------------------------------------------------------------------ comparison

    def check(self, key: Key, seen: Seen | None, limit: int | None) -> None:
        """Compare what a client with this cache makes of the answer with the model."""
        logs = [LogWanted(part, limit, *(seen.life.head(part) if seen is not None else (0, 0))) for part in PARTS]
        wanted = Wanted(
            logs=logs,
            entries=[(part, name) for part in PARTS for name in ENTRY_NAMES],
            ranges=[EntryRange(part, prefix) for part in PARTS for prefix in ("", "1")],
        )
        known = seen.known if seen is not None else None
        opened = self.runner.run(self.store.open(key, wanted=wanted, known=known))
        life = self.life(key)
        assert opened.now == self.clock.now_ms()
        assert opened.lease == self.lease(key)
        if life is None:
            assert opened.row is None
            assert opened.version == ABSENT
            return
        assert opened.version == life.commits[-1]
        assert opened.continues == (seen is not None and seen.known.version in life.commits)
        self.check_row(opened, seen, life)
        self.check_values(opened, seen, life)
        self.check_logs(opened, seen, life, limit)
        self.check_collections(opened, life)
        if seen is None:
            assert opened.row is not None
            self.seen[key].append(Seen(Known(opened.version, opened.row.record_tag), deepcopy(life)))

    def check_row(self, opened: Opened, seen: Seen | None, life: Life) -> None:
        """The row, with fields if they changed."""
        row = opened.row
        assert row is not None
        self.compare_row(row, life)
        if row.fields is None:
            assert seen is not None
            assert seen.life.fields == life.fields
        else:
            assert row.fields == life.fields

    def compare_row(self, row: Row, life: Life) -> None:
        """All but the fields."""
        assert row.course == life.course
        assert row.stamps == life.stamps
        assert (row.lifetime, row.own) == (life.lifetime, life.own)
        assert (row.belongs_to, row.counters, row.record_tag) == (life.belongs_to, life.counters, life.tag)

    def check_values(self, opened: Opened, seen: Seen | None, life: Life) -> None:
        """The namespaces that changed."""
        values = seen.life.by_namespace() if seen is not None and opened.continues else {}
        values.update(opened.values)
        assert {namespace: named for namespace, named in values.items() if named} == life.by_namespace()

    def check_logs(self, opened: Opened, seen: Seen | None, life: Life, limit: int | None) -> None:
        """The tails, or the windows."""
        assert {part: head for part, head in opened.log_heads.items() if head.count} == {
            part: life.head(part) for part, items in life.logs.items() if items
        }
        for part, read in zip(PARTS, opened.logs, strict=True):
            items = [data for _, data in life.logs.get(part, [])]
            assert read.head == life.head(part)
            if read.continues:
                assert seen is not None
                count = seen.life.head(part).count
                assert seen.life.logs.get(part, []) == life.logs.get(part, [])[:count]
                assert read.items == items[count:]
            else:
                assert read.items == items[max(0, len(items) - limit) if limit is not None else 0 :]

    def check_collections(self, opened: Opened, life: Life) -> None:
        """Entries and ranges."""
        kept = {part: entries for part, entries in life.collections.items() if entries}
        assert set(opened.collections) == set(kept)
        assert opened.entries == [kept.get(part, {}).get(name) for part in PARTS for name in ENTRY_NAMES]
        assert opened.ranges == [
            sorted(entry for entry in kept.get(part, {}).items() if entry[0].startswith(prefix))
            for part in PARTS
            for prefix in ("", "1")
        ]


def merge(kept: dict[Any, bytes], changes: dict[Any, bytes | None]) -> None:
    """Put what is given, delete what is None."""
    for name, data in changes.items():
        if data is None:
            kept.pop(name, None)
        else:
            kept[name] = data


def add(counters: dict[str, int], more: dict[str, int]) -> None:
    """Count on."""
    for name, number in more.items():
        counters[name] = counters.get(name, 0) + number


class AnySequence(Harness):
    """The model against the store."""

    EXAMPLES = 60
    """How many sequences are tried."""

    def test_any_sequence_of_operations_does_what_the_model_says(self) -> None:
        make_store = self.make_store

        class Bound(Machine):
            def __init__(self) -> None:
                super().__init__(make_store)

        run_state_machine_as_test(
            Bound,
            settings=settings(
                max_examples=self.EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
