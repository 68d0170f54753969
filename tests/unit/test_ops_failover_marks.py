"""The marks in a node's folder and the note of who leads, without a server."""

from pathlib import Path

import pytest

from shared.errors import Misconfigured
from workers.ops.replication.group import Group, Leadership, node_names, slot
from workers.ops.replication.node import Node, with_settings


@pytest.fixture
def group(tmp_path: Path) -> Group:
    nodes = []
    for number, name in enumerate(node_names(2)):
        (tmp_path / name / "cluster").mkdir(parents=True)
        nodes.append(Node(name=name, port=1001 + number, folder=tmp_path / name, own=lambda path: None))
    return Group(nodes=tuple(nodes), note=tmp_path / "leadership.json", tools=tmp_path, synchronous=True)


def test_a_setting_replaces_its_own_line_and_leaves_the_others() -> None:
    before = "# by ALTER SYSTEM\nwork_mem = '8MB'\nprimary_conninfo = 'port=1'\n"
    after = with_settings(before, {"primary_conninfo": "port=2 passfile='x'"})
    assert after == "# by ALTER SYSTEM\nwork_mem = '8MB'\nprimary_conninfo = 'port=2 passfile=''x'''\n"
    assert with_settings(after, {"primary_conninfo": "port=2 passfile='x'"}) == after


def test_a_fenced_node_is_a_standby_for_whomever_starts_it(group: Group) -> None:
    node = group.node("postgres")
    node.fence("a reason")
    assert (node.is_fenced, node.is_standby) == (True, True)
    node.lift_fence()
    assert (node.is_fenced, node.is_standby) == (False, True)


def test_the_first_node_leads_until_another_is_crowned(group: Group) -> None:
    assert group.leadership() == Leadership("postgres", 1)
    assert group.crown("replica-2") == group.leadership() == Leadership("replica-2", 2)
    assert (group.leader.name, [node.name for node in group.followers]) == ("replica-2", ["postgres", "replica"])


def test_addresses_put_the_leader_first(group: Group) -> None:
    group.crown("replica")
    url = "postgresql+psycopg://fleet@127.0.0.1:{}/fleet"
    replicas = ",".join((url.format(1001), url.format(1003)))
    assert group.addresses() == {"FLEET_DB_URL": url.format(1002), "FLEET_DB_REPLICAS": replicas}
    assert group.first_replica == url.format(1001)


def test_standbys_are_named_so_that_a_base_backup_is_not_one(group: Group) -> None:
    assert group.synchronous_names() == 'ANY 1 ("postgres", "replica", "replica-2")'
    assert slot("replica-2") == "replica_2"


def test_fewer_replicas_than_the_leader_needs_are_refused_with_their_number(group: Group) -> None:
    group.crown("replica-2")
    smaller = Group(nodes=group.nodes[:2], note=group.note, tools=group.tools)
    with pytest.raises(Misconfigured, match=r"primary of this folder is replica-2, .* --replicas 2 or more"):
        smaller.leadership()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"leader": "postgres"}', '{"leader": "postgres", "term": null}'])
def test_a_damaged_note_is_refused_rather_than_guessed(group: Group, damage: str) -> None:
    group.note.write_text(damage)
    with pytest.raises(Misconfigured, match="which says which PostgreSQL leads, cannot be read"):
        group.leadership()
