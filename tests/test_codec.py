"""The codec: what goes in comes out exactly, and everything else is refused with a path and a remedy."""

from __future__ import annotations

import dataclasses
import enum
import math
import random
import re
import struct
import sys
import threading
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, TypeAdapter, field_validator

from agent_sessions.codec import (
    MAX_DEPTH,
    MAX_VALUE_BYTES,
    decode,
    decode_list,
    encode,
    encode_unchecked,
    is_immutable,
    register_type,
    registry,
)
from agent_sessions.errors import (
    CommitTooLargeError,
    FormatTooNewError,
    InvalidError,
    SerializationError,
    SessionError,
)


@pytest.fixture(autouse=True)
def registrations() -> Iterator[None]:
    """Each test may register what it likes; what this module registers stays."""
    classes, names = dict(registry.by_class), dict(registry.by_name)
    yield
    registry.by_class.clear()
    registry.by_class.update(classes)
    registry.by_name.clear()
    registry.by_name.update(names)


def assert_same(left: Any, right: Any) -> None:
    """Equal in value and in type, all the way down; for floats to the bit."""
    assert type(left) is type(right)
    if isinstance(left, float):
        assert struct.pack(">d", left) == struct.pack(">d", right) or (math.isnan(left) and math.isnan(right))
    elif isinstance(left, dict):
        assert len(left) == len(right)
        for (left_key, left_item), (right_key, right_item) in zip(left.items(), right.items(), strict=True):
            assert_same(left_key, right_key)
            assert_same(left_item, right_item)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for left_item, right_item in zip(left, right, strict=True):
            assert_same(left_item, right_item)
    elif isinstance(left, set | frozenset):
        assert len(left) == len(right)
        for left_item, right_item in zip(sorted(left, key=encode), sorted(right, key=encode), strict=True):
            assert_same(left_item, right_item)
    elif isinstance(left, datetime | time):
        assert left.replace(tzinfo=None) == right.replace(tzinfo=None)
        assert left.fold == right.fold
        assert_same_zone(left.tzinfo, right.tzinfo)
    elif isinstance(left, Decimal):
        assert left.as_tuple() == right.as_tuple()
    elif isinstance(left, enum.Enum):
        assert left is right
    elif isinstance(left, BaseModel):
        assert_same(left.__dict__, right.__dict__)
        assert_same(left.__pydantic_extra__, right.__pydantic_extra__)
        assert_same(left.__pydantic_private__, right.__pydantic_private__)
        assert left.model_fields_set == right.model_fields_set
    elif dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, msgspec.Struct):
        for name in left.__struct_fields__:
            assert_same(getattr(left, name), getattr(right, name))
    else:
        assert left == right


def assert_same_zone(left: tzinfo | None, right: tzinfo | None) -> None:
    assert type(left) is type(right)
    if isinstance(left, ZoneInfo):
        assert left is right
    elif left is not None and right is not None:
        assert left.utcoffset(None) == right.utcoffset(None)
        assert left.tzname(None) == right.tzname(None)


def assert_round_trip(value: Any) -> None:
    data = encode(value)
    back = decode(data)
    assert_same(value, back)
    assert encode(back) == data


def refusal(value: Any) -> SerializationError:
    with pytest.raises(SerializationError) as caught:
        encode(value)
    return caught.value


def nested(depth: int, leaf: Any = None) -> Any:
    value: Any = [] if leaf is None else [leaf]
    for _ in range(depth - 1):
        value = [value]
    return value


class Color(enum.Enum):
    RED = (1,)
    GREEN = "g"
    VERT = "g"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    NONE = 0
    READ = 1
    WRITE = 2
    RUN = 4


@dataclasses.dataclass
class Cart:
    items: list[Any]
    when: datetime | None = None
    total: Any = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any = 0


class Person(BaseModel):
    name: Any
    nick: Any = None
    _seen: Any = PrivateAttr(default=0)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Node(msgspec.Struct):
    label: Any
    links: list[Any] = []
    note: Any = msgspec.UNSET


MODULE_CLASSES = (Color, Level, Right, Cart, Point, Person, Open, Node)
for each in MODULE_CLASSES:
    register_type(each)


def shown(value: Any) -> str:
    """A test's name for a value: the same in every process that shares the tests."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return "long"
    return re.sub(" at 0x[0-9a-f]+", "", text)[:40]


# Round trips

PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 127, 128, -32, -33, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan"), 5e-324, 1e308,
    "", "text", "ünïcödé 🚀", "\x00", "a" * 70_000, b"", b"\x00\xff", b"x" * 70_000,
    [], {}, [[]], [{}], {"a": {"b": [1, 2.0, None, b"b"]}}, {"": 0}, [1, True, 1.0], {"a" * 300: list(range(300))},
]  # fmt: skip

TYPED: list[Any] = [
    2**64, -(2**63) - 1, 2**64 + 1, -(2**64), 10**100, -(10**5000),
    (), (1,), (1, [2, (3,)]), [()], set(), {1, 2}, frozenset(), frozenset({(1, 2), "a", 1.5, None}), {frozenset({1})},
    {float("nan"), -0.0, b"a", "a", 2**70, date(2024, 1, 1)},
    {1: "a"}, {1: 1, "1": 2}, {(1, 2): 3}, {None: 1, False: 2}, {1.5: {2: {3: 4}}}, {b"k": 1}, {frozenset({1}): 1},
    {Color.RED: 1, Point(1, 2): 2}, {date(2024, 2, 29): []},
    datetime(2024, 1, 2, 3, 4, 5, 6), datetime.min, datetime.max, datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-23, minutes=-59, seconds=-59, microseconds=-999_999))),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "Ortszeit")),
    datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")), datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2024, 1, 1, fold=1),
    date.min, date.max, time(), time(23, 59, 59, 999_999, fold=1), time(1, tzinfo=UTC),
    time(1, tzinfo=ZoneInfo("Asia/Kolkata")),
    timedelta(), timedelta(days=-1, microseconds=1), timedelta.min, timedelta.max, -timedelta(microseconds=1),
    *map(Decimal, ["0", "-0", "1.10", "1E+5", "0E-7", "1E-6143", "NaN", "-NaN123", "sNaN", "Infinity", "-Infinity"]),
    Decimal((1, (9,) * 50, -20)), Decimal("1E+999999"),
    UUID(int=0), UUID("12345678-1234-5678-1234-567812345678"),
    Color.RED, Color.VERT, Level.HIGH, Right.NONE, Right.READ, Right.READ | Right.RUN, ~Right.NONE,
    Cart([]), Cart([Cart([(1, 2)], datetime(2024, 1, 1, tzinfo=UTC))]), Point(1, Point({2}, Color.GREEN)),
    Person(name=Point(1, 2)), Person(name="a", nick=None), Person(name={1: (2,)}, nick=Cart([2**70])),
    Open.model_validate({"name": "a", "extra": (1, 2)}), Node("a"), Node("a", [Node("b"), Person(name="c")], note=(1,)),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=shown)
def test_a_plain_value_is_plain_messagepack(value: Any) -> None:
    assert encode(value) == msgspec.msgpack.encode(value)
    assert_round_trip(value)


@pytest.mark.parametrize("value", TYPED, ids=shown)
def test_a_typed_value_comes_back_exactly(value: Any) -> None:
    assert_round_trip(value)
    assert_round_trip({"a": [value, {"b": value}]})
    assert_round_trip((value, {1: value}))


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Etc/GMT+12"]).map(ZoneInfo),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(min_value=2**63 - 2, max_value=2**64 + 2), st.floats(),
    st.text(), st.binary(), st.datetimes(timezones=zones, allow_imaginary=True), st.dates(), st.times(timezones=zones),
    st.timedeltas(), st.decimals().filter(lambda number: not number.is_snan()), st.uuids(),
    st.sampled_from([*Color, *Level, Right.READ | Right.RUN]),
)  # fmt: skip
hashables = st.recursive(
    scalars,
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=4), st.builds(Point, inner, inner)),
    max_leaves=5,
)
values = st.recursive(
    st.one_of(scalars, hashables),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=8), inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=3),
        st.sets(hashables, max_size=4),
        st.builds(Cart, st.lists(inner, max_size=2)),
        st.builds(Person, name=inner),
        st.builds(Node, inner, note=inner),
    ),
    max_leaves=20,
)
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


@given(values)
@settings(max_examples=400, deadline=None)
def test_any_value_comes_back_exactly(value: Any) -> None:
    assert_round_trip(value)


@given(st.lists(documents, max_size=5))
@settings(max_examples=200, deadline=None)
def test_encode_unchecked_of_plain_items_ends_with_the_encoded_items(items: list[Any]) -> None:
    assert encode_unchecked(items).endswith(b"".join(map(encode, items)))
    assert encode(items) == encode_unchecked(items)


def test_encode_unchecked_never_raises() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for item in (object(), 2**64, "\ud800", loop, Person(name="a"), {1: {2}}, nested(100_000)):
        assert encode_unchecked([item]) == b"" or encode_unchecked([item]) != encode([1])


def test_a_pydantic_parsed_datetime_keeps_its_zone() -> None:
    for text in ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00+05:30", "2024-01-01T00:00:00-00:30"):
        assert_round_trip(TypeAdapter(datetime).validate_python(text))


def test_five_megabytes_come_back_exactly() -> None:
    assert_round_trip({"text": "é" * 2_500_000, "data": b"x" * 5_000_000, "numbers": list(range(100_000))})
    assert_round_trip([("x" * 5_000_000,)])


def test_the_same_list_twice_is_fine() -> None:
    shared = [1]
    assert decode(encode([shared, {"a": shared}, (shared, shared)])) == [[1], {"a": [1]}, ([1], [1])]
    point = Point(1, 2)
    assert_round_trip([point, point, {point: point}])


@pytest.mark.parametrize("wrap", [list, tuple, frozenset])
def test_sets_encode_alike_whatever_their_order(wrap: Any) -> None:
    names = [f"name{i}" for i in range(100)]
    shuffled = random.Random(1).sample(names, 100)
    assert encode(wrap([frozenset(names)])) == encode(wrap([frozenset(shuffled)]))
    assert encode(set(names)) == encode(set(shuffled))


def test_a_change_in_place_shows_as_other_bytes() -> None:
    def fresh() -> dict[str, Any]:
        return {"a": [1, {"b": (1, [2])}], "s": {1}, "c": Cart([1]), "p": Person(name="a"), "n": Node("a", [])}

    changes: list[Any] = [
        lambda value: value["a"].append(2),
        lambda value: value["a"][1].update(b=[1, [2]]),
        lambda value: value["a"][1]["b"][1].append(3),
        lambda value: value["a"].__setitem__(0, True),
        lambda value: value["a"].__setitem__(0, 1.0),
        lambda value: value["s"].add(2),
        lambda value: setattr(value["c"], "total", 5),
        lambda value: setattr(value["p"], "nick", None),
        lambda value: setattr(value["p"], "_seen", 1),
        lambda value: value["n"].links.append(1),
    ]
    before = encode(fresh())
    assert encode(fresh()) == before
    for change in changes:
        value = decode(before)
        change(value)
        assert encode(value) != before


# Refusals


class Text(str):
    __slots__ = ()


class Mapping(dict):
    pass


class Plain:
    pass


class Unregistered(enum.Enum):
    A = 1


class UnregisteredInt(enum.IntEnum):
    A = 1


@dataclasses.dataclass
class UnregisteredCart:
    items: list[Any]


class SubCart(Cart):
    pass


class SubDatetime(datetime):
    pass


class UnregisteredModel(BaseModel):
    pass


class Fixed(tzinfo):
    def tzname(self, moment: datetime | None) -> None:
        return None

    def dst(self, moment: datetime | None) -> None:
        return None

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)


Pair = namedtuple("Pair", "a b")

REFUSED = [
    (Plain(), "can't be stored"), (object(), "can't be stored"), (Plain, "can't be stored"), (len, "can't be stored"),
    (1j, "can't be stored"), (range(3), "can't be stored"), (..., "can't be stored"), (iter([]), "can't be stored"),
    (bytearray(b"a"), "bytes(...)"), (memoryview(b"a"), "bytes(...)"), (ValueError("a"), "can't be stored"),
    (Text("a"), "plain str"), (Mapping(), "plain dict"), (OrderedDict(a=1), "plain dict"),
    (defaultdict(list), "plain dict"),
    (Pair(1, 2), "plain tuple"), (SubDatetime(2024, 1, 1), "plain datetime"),
    (Unregistered.A, "register_type(Unregistered)"), (UnregisteredInt.A, "register_type(UnregisteredInt)"),
    (UnregisteredCart([]), "register_type(UnregisteredCart)"), (SubCart([]), "can't be stored"),
    (UnregisteredModel(), "register_type(UnregisteredModel)"),
    (Ext(1, b"a"), "can't be stored"), (msgspec.Raw(b"\x01"), "can't be stored"), (msgspec.UNSET, "can't be stored"),
    (datetime(2024, 1, 1, tzinfo=Fixed()), "zoneinfo.ZoneInfo"), (time(1, tzinfo=Fixed()), "zoneinfo.ZoneInfo"),
    ("\ud800", "surrogate"), ("ok\udfff", "surrogate"),
    (datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "\ud800")), "surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "remedy"), REFUSED, ids=shown)
def test_what_would_come_back_changed_is_refused_with_path_and_remedy(value: Any, remedy: str) -> None:
    for wrapped, path in [
        (value, "value"),
        ([1, value], "value[1]"),
        ({"cart": [{"odd key": (0, value)}]}, 'value.cart[0]["odd key"][1]'),
        ({1: {"é": value}}, "value[1].é"),
        (Cart([1, {"a": value}]), "value.items[1].a"),
        ([2**70, {"a": value}], "value[1].a"),
        (Person(name=[Node([value])]), "value.name[0].label[0]"),
    ]:
        error = refusal(wrapped)
        assert error.field == path
        assert path in error.message
        assert remedy in error.message


def test_a_refused_key_or_element_is_named() -> None:
    assert refusal({"a": {Text("k"): 1}}).field == "value.a[key <Text>]"
    assert refusal({(1, Plain): 1}).field == "value[key <tuple>][1]"
    assert refusal({"a": {"\ud800": 1}}).field == 'value.a[key "\\ud800"]'
    assert refusal({"a": {1, (Text("k"),)}}).field == "value.a[*][0]"
    assert refusal({(1, 2): Plain()}).field == "value[<tuple>]"


def test_the_path_starts_with_the_given_root() -> None:
    with pytest.raises(SerializationError, match=r"cart\[2\]\.when is a .*Plain") as caught:
        encode([0, 1, {"when": Plain()}], root="cart")
    assert caught.value.field == "cart[2].when"


def test_no_message_holds_a_value() -> None:
    for value in ({"a": ["s3cret", Plain()]}, Text("s3cret"), {Text("s3cret"): 1}, "s3cret\ud800", Pair("s3cret", 1)):
        assert "s3cret" not in str(refusal(value))
    data = encode({"a": [Decimal("12"), "s3cret"]}).replace(b"12", b"q7")
    with pytest.raises(SerializationError) as caught:
        decode(data)
    assert "q7" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {1: v}, lambda v: Point(v)]
)
def test_depth_is_limited_in_every_kind_of_container(wrap: Any) -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    assert_round_trip(value)
    around_a_leaf = wrap(date(2024, 1, 1))
    for _ in range(MAX_DEPTH - 1):
        around_a_leaf = wrap(around_a_leaf)
    assert_round_trip(around_a_leaf)
    error = refusal(wrap(value))
    assert f"more than {MAX_DEPTH} deep" in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize("depth", [129, 1000, 100_000])
def test_deep_nesting_is_refused_whatever_the_stack(depth: int) -> None:
    assert refusal(nested(depth)).field == "value" + "[0]" * MAX_DEPTH
    assert "deep" in refusal(nested(depth, (1,))).message


def test_a_nearly_full_stack_is_a_serialization_error() -> None:
    def descend(left: int) -> str | None:
        if left:
            return descend(left - 1)
        try:
            encode(nested(100, (1,)))
            decode(encode(nested(1)))
        except SerializationError as error:
            return error.message
        return None

    frames = len(iter_frames())
    outcomes = {descend(sys.getrecursionlimit() - frames - left) for left in range(60, 120, 10)}
    assert outcomes <= {None} | {outcome for outcome in outcomes if outcome and "call stack" in outcome}
    assert any(outcomes)


def iter_frames() -> list[Any]:
    frame, found = sys._getframe(), []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def test_what_contains_itself_is_refused_as_such() -> None:
    as_list: list[Any] = [1]
    as_list.append({"a": as_list})
    assert refusal(as_list).field == "value[1].a"
    as_dict: dict[Any, Any] = {1: 2}
    as_dict["me"] = (as_dict,)
    assert refusal(as_dict).field == "value.me[0]"
    cart = Cart([])
    cart.items.append(cart)
    assert refusal(cart).field == "value.items[0]"
    branching: list[Any] = []
    branching.extend([branching, branching])
    assert refusal(branching).field == "value[0]"
    for value in (as_list, as_dict, cart, branching):
        assert "contains itself" in refusal(value).message


def test_a_value_over_the_limit_is_refused_with_size_and_limit() -> None:
    fits = b"x" * (MAX_VALUE_BYTES - 5)
    assert decode(encode(fits)) == fits
    for value, size in [(fits + b"x", "16,777,217"), (["x" * MAX_VALUE_BYTES], "16,777,22"), ((fits, b""), "16,777,2")]:
        with pytest.raises(CommitTooLargeError, match="16,777,216") as caught:
            encode(value, root="big")
        assert size in caught.value.message
        assert caught.value.field == "big"


def test_a_value_of_too_many_parts_is_refused_before_it_is_built() -> None:
    shared: list[Any] = []
    for _ in range(100):
        shared = [shared, shared]  # 2**100 nodes in 101 lists
    for value in (shared, [None] * (MAX_VALUE_BYTES + 1), (None,) * (MAX_VALUE_BYTES + 1)):
        with pytest.raises(CommitTooLargeError):
            encode(value)


def test_a_failing_property_is_a_serialization_error() -> None:
    class Odd(BaseModel):
        name: str

        @property
        def model_fields_set(self) -> set[str]:
            raise ZeroDivisionError

    register_type(Odd)
    assert "ZeroDivisionError" in refusal(Odd(name="a")).message


# Registered classes


def stored(name: str, version: int, fields: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(Ext(12, msgspec.msgpack.encode([name, version, fields])))


def test_register_type_decorates_with_and_without_arguments() -> None:
    @register_type
    @dataclasses.dataclass
    class One:
        a: int

    @register_type(name="shop.Two", version=3)
    @dataclasses.dataclass
    class Two:
        a: int

    assert_round_trip([One(1), Two(2)])
    assert b"shop.Two" in encode(Two(1))
    assert f"{__name__}.test_register".encode() in encode(One(1))


def test_init_and_post_init_do_not_run_on_the_way_back() -> None:
    @register_type
    @dataclasses.dataclass
    class Secret:
        text: str
        salt: dataclasses.InitVar[str]
        length: int = dataclasses.field(init=False)
        unset: int = dataclasses.field(init=False)

        def __post_init__(self, salt: str) -> None:
            self.text += salt
            self.length = len(self.text)

    back = decode(encode(Secret("a", "b")))
    assert (back.text, back.length) == ("ab", 2)
    assert not hasattr(back, "unset")


def test_a_struct_comes_back_as_it_was_though_post_init_runs() -> None:
    @register_type
    class Counter(msgspec.Struct, frozen=True):
        count: int
        tags: list[str] = []

        def __post_init__(self) -> None:
            msgspec.structs.force_setattr(self, "count", self.count + 1)

    assert decode(encode(Counter(1))).count == 2
    assert_round_trip(Counter(5, ["a"]))


def test_a_validator_that_takes_other_input_does_not_get_in_the_way() -> None:
    @register_type
    class Tags(BaseModel):
        tags: list[str] = Field(alias="t")

        @field_validator("tags", mode="before")
        @classmethod
        def split(cls, text: str) -> list[str]:
            return text.split(",")

    assert_round_trip(Tags.model_validate({"t": "a,b"}))
    assert_round_trip(Tags.model_construct(tags=["not", 5]))  # type: ignore[list-item]


def test_pydantic_keeps_private_extra_and_set_fields() -> None:
    person = Person(name="a")
    person._seen = (1, 2)
    assert_round_trip(person)
    assert decode(encode(person))._seen == (1, 2)
    assert decode(encode(person)).model_fields_set == {"name"}
    opened = Open.model_validate({"name": "a", "when": date(2024, 1, 1)})
    assert decode(encode(opened)).model_extra == {"when": date(2024, 1, 1)}
    assert decode(encode(opened)).model_fields_set == {"name", "when"}


def test_root_models_and_frozen_models_work() -> None:
    Numbers = RootModel[list[int]]
    register_type(Numbers, name="Numbers")

    @register_type
    class Frozen(BaseModel):
        model_config = ConfigDict(frozen=True)
        a: tuple[int, ...]

    assert_round_trip([Numbers([1, 2]), Frozen(a=(1, 2)), {Frozen(a=()): 1}])
    register_type(Numbers, name="Numbers", version=2, upgrade=lambda fields, _: {"root": fields["root"] + [9]})
    assert decode(stored("Numbers", 1, {"root": [1]})) == Numbers([1, 9])


def test_an_upgrade_sees_fields_and_version_and_chains() -> None:
    calls: list[tuple[dict[str, Any], int]] = []

    def upgrade(fields: dict[str, Any], from_version: int) -> dict[str, Any]:
        calls.append((dict(fields), from_version))
        if from_version < 2:
            fields["when"] = fields.pop("time")
        if from_version < 3:
            fields["total"] = len(fields["items"])
        return fields

    register_type(Cart, version=3, upgrade=upgrade)
    name = f"{__name__}.Cart"
    assert decode(stored(name, 1, {"items": [1], "time": None})) == decode(
        stored(name, 2, {"items": [1], "when": None})
    )
    assert [version for _, version in calls] == [1, 2]
    assert decode(encode([Cart([1])]))[0].total == 0
    assert len(calls) == 2


def test_upgrades_of_nested_objects_run_innermost_first() -> None:
    old = encode(Cart([Point(1, 2)]))
    register_type(Point, version=2, upgrade=lambda fields, _: {"x": fields["x"] * 10, "y": 0})
    register_type(Cart, version=2, upgrade=lambda fields, _: {"items": [p.x for p in fields["items"]]})
    assert decode(old) == Cart([10])


def test_what_an_upgrade_returns_is_validated_by_pydantic() -> None:
    @register_type(name="Aged", version=2, upgrade=lambda fields, _: {**fields, "age": fields.get("age", "s3cret")})
    class Aged(BaseModel):
        age: int = Field(alias="years")
        _mark: Any = None

    assert decode(stored("Aged", 1, {"age": "7", "_mark": 1})).age == 7
    assert decode(stored("Aged", 1, {"age": "7", "_mark": 1}))._mark == 1
    with pytest.raises(SerializationError, match="age: int_parsing") as caught:
        decode(stored("Aged", 1, {}))
    assert "s3cret" not in str(caught.value)


def test_enums_upgrade_by_member_name() -> None:
    def upgrade(fields: dict[str, Any], _: int) -> dict[str, Any]:
        return {"name": {"ROUGE": "RED"}[fields["name"]]}

    register_type(Color, version=2, upgrade=upgrade)
    assert decode(stored(f"{__name__}.Color", 1, {"name": "ROUGE"})) is Color.RED


@pytest.mark.parametrize(
    ("upgrade", "message"),
    [
        (None, "without an upgrade"),
        (lambda fields, _: fields["nope"], "raised KeyError"),
        (lambda fields, _: None, "must return a dict"),
        (lambda fields, _: {1: 2}, "must return a dict"),
        (lambda fields, _: {"x": 1, "z": 1}, "class lacks: z"),
        (lambda fields, _: {"y": 1}, "lacks the field x"),
    ],
)
def test_a_failing_upgrade_is_a_serialization_error(upgrade: Any, message: str) -> None:
    old = encode(Point(1, 2))
    register_type(Point, version=2, upgrade=upgrade)
    with pytest.raises(SerializationError, match=message):
        decode(old)


def test_data_of_a_newer_class_version_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"stored in version 2, and version 1 .* newer code"):
        decode(stored(f"{__name__}.Point", 2, {"x": 1, "y": 2}))


def test_data_of_an_unregistered_class_names_it_and_runs_nothing() -> None:
    for name in ("os.system", "builtins.eval", "shop.Cart", "agent_sessions.codec.encode"):
        with pytest.raises(SerializationError, match="register_type") as caught:
            decode(stored(name, 1, {"command": "false"}))
        assert name in caught.value.message


def test_a_renamed_class_reads_old_data_by_its_old_name() -> None:
    @dataclasses.dataclass
    class Old:
        a: int

    @dataclasses.dataclass
    class New:
        a: int

    register_type(Old, name="shop.Old")
    data = encode(Old(1))
    del registry.by_name["shop.Old"], registry.by_class[Old]
    register_type(New, name="shop.Old")
    assert decode(data) == New(1)
    assert encode(New(1)) == data


def test_new_fields_get_their_defaults_and_lost_fields_are_an_error() -> None:
    cases: list[tuple[type, dict[str, Any], Any, str]] = [
        (Cart, {"items": []}, Cart([]), "items"),
        (Person, {"name": "a"}, Person(name="a"), "name"),
        (Node, {"label": "a"}, Node("a"), "label"),
        (Point, {"x": 1}, Point(1, 0), "x"),
    ]
    for cls, fields, expected, required in cases:
        name = f"{__name__}.{cls.__name__}"
        assert decode(stored(name, 1, fields)) == expected
        with pytest.raises(SerializationError, match="class lacks: gone"):
            decode(stored(name, 1, {**fields, "gone": 1}))
        with pytest.raises(SerializationError, match=f"lacks the field {required}"):
            decode(stored(name, 1, {}))
    assert decode(encode(Cart([]))).items is not decode(encode(Cart([]))).items


def test_an_object_that_is_more_than_its_fields_is_refused() -> None:
    cart = Cart([])
    cart.note = 1  # type: ignore[attr-defined]
    assert "attributes that are no fields: note" in refusal([cart]).message
    assert refusal([cart]).field == "value[0]"
    del cart.note, cart.items  # type: ignore[attr-defined]
    assert "no value in its field items" in refusal(cart).message
    unset: Any = Person.model_construct
    unset = unset(nick=1)
    assert "no value in its fields name" in refusal(unset).message


def test_a_cached_property_is_no_field() -> None:
    @register_type
    @dataclasses.dataclass
    class Box:
        a: int

        @cached_property
        def double(self) -> int:
            return self.a * 2

    box = Box(2)
    assert box.double == 4
    assert decode(encode(box)) == Box(2)


def test_a_flag_with_unnamed_bits_is_refused() -> None:
    @register_type
    class Bits(enum.Flag, boundary=enum.KEEP):
        A = 1

    assert_round_trip(Bits.A)
    assert "bits" in refusal(Bits(5)).message


def test_a_member_that_is_gone_is_an_error_with_a_remedy() -> None:
    gone: list[tuple[str, dict[str, Any]]] = [
        ("Color", {"name": "BLUE"}),
        ("Right", {"names": ["READ", "FLY"]}),
        ("Color", {}),
        ("Right", {}),
    ]
    for name, fields in gone:
        with pytest.raises(SerializationError, match="upgrade"):
            decode(stored(f"{__name__}.{name}", 1, fields))


def test_wrong_registrations_are_refused() -> None:
    @dataclasses.dataclass
    class Listed(list):
        a: int = 1

    def code(**options: Any) -> str:
        cls = options.pop("cls", UnregisteredCart)
        with pytest.raises(InvalidError) as caught:
            register_type(cls, **options)
        return caught.value.code

    for cls in (Plain, Text, Pair, Listed, SubCart, dict, 5, Cart([])):
        assert code(cls=cls) == "INVALID_TYPE"
    for name in ("", " ", "a\nb", "x" * 300, "\ud800", 5, f"{__name__}.Cart"):
        assert code(name=name) == "INVALID_NAME"
    for version in (0, -1, True, 1.0, "1", 2**31):
        assert code(version=version) == "INVALID_VERSION"
    assert code(upgrade=5) == "INVALID_UPGRADE"
    assert code(cls=Cart, name="other") == "INVALID_TYPE"
    assert UnregisteredCart not in registry.by_class


def test_a_class_defined_again_takes_the_place_of_the_old_one() -> None:
    def define() -> Any:
        @register_type
        @dataclasses.dataclass
        class Cell:
            a: int

        return Cell

    first, second = define(), define()
    assert type(decode(encode(second(1)))) is second
    assert "not registered" in refusal(first(1)).message


def test_registering_from_many_threads_loses_nothing() -> None:
    classes = [dataclasses.make_dataclass(f"Made{i}", ["a"]) for i in range(50)]
    threads = [threading.Thread(target=register_type, args=(cls,), kwargs={"name": cls.__name__}) for cls in classes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_round_trip([cls(1) for cls in classes])


# Damaged and hostile data

SAMPLE = [*TYPED, {"plain": [1, 2.5, "text", b"bytes", None, {"a": -5}]}]


@pytest.mark.parametrize("value", SAMPLE, ids=shown)
def test_truncated_data_is_a_serialization_error_at_every_byte(value: Any) -> None:
    data = encode([value, 1])
    for end in range(min(len(data), 300)):
        with pytest.raises(SerializationError):
            decode(data[:end])
    with pytest.raises(SerializationError):
        decode(data + b"\x00")


@given(st.binary(max_size=60))
@settings(max_examples=1000, deadline=None)
def test_random_bytes_raise_our_errors_only(data: bytes) -> None:
    decode_or_refuse(data)
    for code in range(1, 13):
        decode_or_refuse(msgspec.msgpack.encode(Ext(code, data)))
        decode_or_refuse(b"\xdc\x00\x02" + msgspec.msgpack.encode(Ext(code, data)))


def test_damaged_data_raises_our_errors_only() -> None:
    chance = random.Random(7)
    intact = [encode(value) for value in SAMPLE]
    for _ in range(20_000):
        data = bytearray(chance.choice(intact)[:2000])
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        decode_or_refuse(bytes(data))


def decode_or_refuse(data: bytes) -> None:
    try:
        decode(data)
    except SessionError as error:
        assert isinstance(error, SerializationError | FormatTooNewError)


def test_a_known_type_with_a_wrong_payload_is_a_serialization_error() -> None:
    pack = msgspec.msgpack.encode
    payloads = [
        (2, pack([])), (2, pack(["2024-01-01T00:00:00", 2, None])), (2, pack(["2024-01-01T00:00:00", 0, "No/Where"])),
        (2, pack(["2024-01-01T00:00:00", 0, "../../etc/passwd"])), (2, pack(["2024-01-01T00:00:00", 0, 10**15])),
        (2, pack(["2024-01-01T00:00:00", 0, ["other", 1]])), (2, pack(["x", 0, None])), (3, b"2024-13-01"),
        (3, b"\xff"),
        (4, pack(["25:00", 0, None])), (5, pack([10**10, 0, 0])), (5, pack([1, 2])), (6, b"one"), (7, b"short"),
        (8, pack(1)), (8, pack("ab")), (9, pack([[]])), (10, pack({})), (11, pack([1])), (11, pack([[], 1])),
        (12, pack([])), (12, pack(["a", "b", {}])), (12, pack([f"{__name__}.Cart", 0, {}])), (12, pack([1, 2, 3])),
        (12, pack([f"{__name__}.Person", 1, {"name": 1}, 5])), (12, pack([f"{__name__}.Cart", 1, {1: 2}])),
    ]  # fmt: skip
    for code, payload in payloads:
        with pytest.raises(SerializationError):
            decode(pack(Ext(code, payload)))


def test_an_extension_of_a_newer_layout_is_format_too_new() -> None:
    for code in (13, 63):
        with pytest.raises(FormatTooNewError, match="Upgrade agent-sessions"):
            decode(msgspec.msgpack.encode([Ext(code, b"a")]))
    for code in (0, 64, 127, -2, -128):
        with pytest.raises(SerializationError, match="unknown extension"):
            decode(msgspec.msgpack.encode([Ext(code, b"a")]))


def test_data_nested_without_end_is_a_serialization_error() -> None:
    data = b"\x01"
    for _ in range(5000):
        data = msgspec.msgpack.encode(Ext(8, b"\x91" + data))
    for hostile in (data, b"\x91" * 1_000_000, b"\x81\xa1a" * 1_000_000, b"\xdd\xff\xff\xff\xff" * 100):
        with pytest.raises(SerializationError):
            decode(hostile)


def test_what_is_no_bytes_is_a_serialization_error() -> None:
    for data in ("text", None, 5, b""):
        with pytest.raises(SerializationError):
            decode(data)  # type: ignore[arg-type]
    assert decode(memoryview(encode((1, 2)))) == (1, 2)


# Immutability


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


def test_what_can_not_change_in_place_is_known() -> None:
    register_type(Frozen)
    immutable: list[Any] = [
        None, 1, 2**70, "a", b"a", 1.5, (), (1, ("a", frozenset({1}))), date(2024, 1, 1), Decimal(1), UUID(int=1),
        datetime(2024, 1, 1, tzinfo=UTC), timedelta(1), time(1), Color.RED, Right.READ, Point(1, (2,)), Frozen(1),
    ]  # fmt: skip
    mutable: list[Any] = [
        [], {}, set(), ([],), (1, (2, {})), Point(1, []), Frozen({}), Cart([]), Person(name=1), Node(1), Plain(),
        Text(),
    ]  # fmt: skip
    assert all(map(is_immutable, immutable))
    assert not any(map(is_immutable, mutable))
    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    assert not is_immutable(deep)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 1000, 65_535, 65_536])
def test_pieces_that_follow_on_one_another_are_read_as_a_list(count: int) -> None:
    values = [number if number % 7 else (number, {"text": "x"}) for number in range(count)]
    pieces = b"".join(map(encode, values))
    assert decode_list(memoryview(pieces), count) == values
    if count:
        with pytest.raises(SerializationError):
            decode_list(pieces[:-1], count)
