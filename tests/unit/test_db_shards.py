"""Shards as declared and as mapped: the file's complaints, the map's merging, and what is here."""

from itertools import permutations
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.db.knobs import DbKnobs
from shared.db.shard_map import BucketRow, Home, ShardMap, bucket_for, check_here
from shared.db.shards_file import own_layout, own_shard, parse_shards
from shared.errors import Misconfigured, ShardMoved

KNOBS = DbKnobs(url="postgresql+psycopg://fleet:pw@127.0.0.1:5432/fleet")
BROKER = "amqp://fleet:pw@127.0.0.1:5672//"
TWO = """
shards:
  main: {primary: {host: a}, replicas: [{host: b, weight: 2}]}
  second: {primary: {host: c, port: 6000}, database: own, broker: {vhost: second}}
"""
rows = st.builds(
    BucketRow,
    bucket=st.integers(0, 3),
    epoch=st.integers(0, 5),
    state=st.sampled_from(["open", "moving", "moved", "arriving"]),
    shard=st.sampled_from(["main", "second", "third"]),
)


def test_each_shard_has_its_nodes_and_its_broker_and_the_first_is_everybodys() -> None:
    main, second = parse_shards(TWO, source="shards.yaml", knobs=KNOBS, broker_url=BROKER)
    assert (main.name, second.name) == ("main", "second")
    assert [node.url for node in main.layout.nodes] == [
        "postgresql+psycopg://fleet:pw@a:5432/fleet",
        "postgresql+psycopg://fleet:pw@b:5432/fleet",
    ]
    assert [node.url for node in second.layout.nodes] == ["postgresql+psycopg://fleet:pw@c:6000/own"]
    assert main.broker_url == BROKER
    assert second.broker_url == "amqp://fleet:pw@127.0.0.1:5672/second"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shards: {}", "shards.yaml, line 1, shards: dictionary should have at least 1 item"),
        ("shards:\n  Main: {primary: {host: a}}", "shards.yaml, line 2, shards.Main"),
        ("shards:\n  a:\n    primary: {host: a, prot: 1}", "shards.yaml, line 3, shards.a.primary.prot: no such key"),
        ("shards:\n  a: {replicas: []}", "shards.yaml, line 2, shards.a.primary: this key is missing"),
        ("shards:\n  a: {primary: {host: a}}\n  a: {primary: {host: b}}", "line 2, shards.a: this key is set twice"),
        (
            "shards:\n  a: {primary: {host: x}}\n  b: {primary: {host: x}, broker: {vhost: b}}",
            "shards.yaml, line 3, shards.b: postgresql+psycopg://fleet:***@x:5432/fleet is a's already",
        ),
        (
            "shards:\n  a: {primary: {host: x}}\n  b: {primary: {host: y}}",
            "shards.yaml, line 3, shards.b: amqp://fleet:***@127.0.0.1:5672// is a's already",
        ),
        (
            "shards:\n  a:\n    primary: {host: x}\n    replicas:\n      - {host: x}",
            "shards.yaml, line 5, shards.a.replicas[0]: x:5432 is listed already",
        ),
    ],
)
def test_a_file_that_does_not_hold_is_refused_with_line_and_key(text: str, complaint: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        parse_shards(text, source="shards.yaml", knobs=KNOBS, broker_url=BROKER)
    assert complaint in caught.value.message


def test_a_process_belongs_to_one_shard(tmp_path: object) -> None:
    shards = parse_shards(TWO, source="shards.yaml", knobs=KNOBS, broker_url=BROKER)
    assert own_shard(shards, KNOBS).name == "main"
    file = f"{tmp_path}/shards.yaml"
    with open(file, "w") as out:  # noqa: PTH123
        out.write(TWO)
    second = DbKnobs(url=KNOBS.url, shards=file, shard="second")
    assert own_shard(shards, second).name == "second"
    assert own_layout(second) == shards[1].layout
    with pytest.raises(Misconfigured, match="FLEET_DB_SHARD: 'third' is none of main, second"):
        own_layout(DbKnobs(url=KNOBS.url, shards=file, shard="third"))


def test_a_shard_without_the_file_of_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="shard needs shards"):
        DbKnobs(shard="second")
    with pytest.raises(ValueError, match="shards names every node"):
        DbKnobs(shards="f", replicas=KNOBS.url)


def test_every_bucket_is_the_firsts_until_it_is_moved() -> None:
    assert {ShardMap("main").home_of(bucket) for bucket in range(1024)} == {Home("main")}
    moved = ShardMap("main").merged([BucketRow(7, 1, "open", "second")])
    assert (moved.home_of(7), moved.home_of(8)) == (Home("second", 1), Home("main"))


@given(st.lists(rows, max_size=5))
def test_a_map_does_not_depend_on_who_answers_first_and_the_latest_move_wins(found: list[BucketRow]) -> None:
    maps = {
        tuple(ShardMap("main").merged(order).home_of(bucket) for bucket in range(4)) for order in permutations(found)
    }
    assert len(maps) == 1
    for bucket, home in enumerate(maps.pop()):
        assert home.epoch == max((row.epoch for row in found if row.bucket == bucket), default=0)


@given(st.lists(rows, max_size=8), st.lists(rows, max_size=8))
def test_a_map_never_forgets_a_move(one: list[BucketRow], other: list[BucketRow]) -> None:
    before = ShardMap("main").merged(one)
    after = before.merged(other)
    assert all(after.home_of(bucket).epoch >= before.home_of(bucket).epoch for bucket in range(4))
    assert after.merged(one) == after == after.merged(other)


@pytest.mark.parametrize("state", ["open", "moving", None])
def test_a_bucket_is_here_until_it_has_left(state: str | None) -> None:
    check_here(state, bucket=1, here="main", home=Home("main"))


@pytest.mark.parametrize(
    ("state", "home"), [("moved", Home("main")), ("arriving", Home("main", 1)), (None, Home("second", 1))]
)
def test_a_bucket_that_has_left_or_not_yet_come_is_not_here(state: str | None, home: Home) -> None:
    with pytest.raises(ShardMoved, match="look again where it is"):
        check_here(state, bucket=1, here=home.shard, home=home)


def test_a_key_is_a_task_or_a_session() -> None:
    assert bucket_for(UUID(int=1023 + 1024)) == 1023
    assert bucket_for("s-1") == bucket_for(("default", "s-1")) != bucket_for(("other", "s-1"))
