"""A sealed value opens where it was sealed, with its key, unaltered, and nowhere else."""

import base64
import json
import os
import string
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.contracts import TaskMessage, parse
from shared.errors import BadInput, Misconfigured, SealBroken, SealKeyUnknown
from shared.ledger.rows import task_row
from shared.ledger.sealed_input import open_input, open_message, seal_message, seal_received
from shared.ledger.vault import INPUT, OUTPUT, SEALED, Vault, blob_role, is_sealed, step_role
from shared.ledger.vault_knobs import MasterKey, new_key_line, read_keys

TASK = UUID("00000000-0000-4000-8000-000000000001")
OLD, NEW = MasterKey("old", os.urandom(32)), MasterKey("new", os.urandom(32))
WORDS = {"text": "the patient's name is Grace"}


def sealed_by(vault: Vault, value: Any = WORDS, role: str = OUTPUT) -> Any:
    return vault.seal(value, task_id=TASK, role=role)


def opened_by(vault: Vault, value: Any, role: str = OUTPUT) -> Any:
    return vault.open(value, task_id=TASK, role=role)


def altered(value: Any, field: str, instead: Any) -> Any:
    return {SEALED: {**value[SEALED], field: instead}}


def test_a_sealed_value_shows_its_key_id_and_nothing_of_what_it_holds() -> None:
    sealed = sealed_by(Vault([OLD]))
    assert sealed.keys() == {SEALED} and sealed[SEALED].keys() == {"v", "kid", "key", "data"}
    assert (sealed[SEALED]["v"], sealed[SEALED]["kid"]) == (1, "old")
    assert b"Grace" not in base64.b64decode(sealed[SEALED]["data"]) and "Grace" not in json.dumps(sealed)
    assert opened_by(Vault([OLD]), sealed) == WORDS


def test_the_same_value_is_never_sealed_to_the_same_text() -> None:
    one, two = sealed_by(Vault([OLD])), sealed_by(Vault([OLD]))
    assert one[SEALED]["key"] != two[SEALED]["key"] and one[SEALED]["data"] != two[SEALED]["data"]


def test_the_first_key_seals_and_every_key_opens() -> None:
    both = Vault([NEW, OLD])
    assert sealed_by(both)[SEALED]["kid"] == "new"
    assert opened_by(both, sealed_by(Vault([OLD]))) == WORDS


@pytest.mark.parametrize("vault", [Vault(), Vault([OLD])], ids=["without keys", "with a key"])
@pytest.mark.parametrize("value", [None, 1, "x", [1], {}, WORDS, {"$sealed": 1, "other": 2}])
def test_what_is_not_sealed_passes_through(vault: Vault, value: Any) -> None:
    assert opened_by(vault, value) is value and vault.rewrap(value) is value and vault.knows_key_of(value)


def test_without_keys_nothing_is_sealed() -> None:
    assert sealed_by(Vault(), WORDS) is WORDS


def test_without_keys_a_value_of_the_sealed_form_is_refused_because_it_could_not_be_told_apart() -> None:
    with pytest.raises(BadInput, match=r"add another key$"):
        sealed_by(Vault(), {SEALED: "of an agent's own"})


def test_with_keys_a_value_of_the_sealed_form_is_a_value_like_any_other() -> None:
    vault = Vault([OLD])
    twice = sealed_by(vault, sealed_by(vault))
    assert opened_by(vault, opened_by(vault, twice)) == WORDS


@pytest.mark.parametrize("vault", [Vault(), Vault([NEW])], ids=["without keys", "with another key"])
def test_a_key_that_is_not_there_is_named_with_the_variable_and_the_remedy(vault: Vault) -> None:
    sealed = sealed_by(Vault([OLD]))
    assert not vault.knows_key_of(sealed)
    with pytest.raises(SealKeyUnknown, match=r"under key 'old', which FLEET_LEDGER_KEYS does not hold") as caught:
        opened_by(vault, sealed)
    assert caught.value.context == {"variable": "FLEET_LEDGER_KEYS", "key_id": "old"}
    with pytest.raises(SealKeyUnknown):
        vault.rewrap(sealed)


def test_another_key_under_the_same_id_is_told_apart_from_an_unknown_one() -> None:
    with pytest.raises(SealBroken, match="stands for another key here"):
        opened_by(Vault([MasterKey("old", os.urandom(32))]), sealed_by(Vault([OLD])))


def test_a_value_moved_to_another_task_or_role_is_refused() -> None:
    vault = Vault([OLD])
    sealed = sealed_by(vault, role=step_role("fetch", 0))
    elsewhere = [(uuid4(), step_role("fetch", 0))]
    others = (OUTPUT, step_role("fetch", 1), blob_role("fetch", 0), step_role("fetch:0", 0), "step:fetch:00", "")
    elsewhere += [(TASK, role) for role in others]
    for task_id, role in elsewhere:
        with pytest.raises(SealBroken, match="or sealed for another row"):
            vault.open(sealed, task_id=task_id, role=role)


def test_data_under_the_data_key_of_another_value_is_refused() -> None:
    vault = Vault([OLD])
    with pytest.raises(SealBroken):
        opened_by(vault, altered(sealed_by(vault), "key", sealed_by(vault)[SEALED]["key"]))


@pytest.mark.parametrize(
    ("field", "instead"),
    [
        ("v", 0), ("v", True), ("v", "1"), ("v", None), ("kid", ""), ("kid", 7), ("kid", "a b"), ("key", ""),
        ("key", "AAAA"), ("key", "é"), ("key", None), ("data", ""), ("data", "AAAA"), ("data", 5), ("more", 1),
    ],
)  # fmt: skip
def test_an_envelope_of_another_shape_is_refused(field: str, instead: Any) -> None:
    with pytest.raises(SealBroken):
        opened_by(Vault([OLD]), altered(sealed_by(Vault([OLD])), field, instead))


def test_another_spelling_of_the_same_bytes_is_refused() -> None:
    sealed = sealed_by(Vault([OLD]))
    key = sealed[SEALED]["key"]  # 76 bytes: the last letter carries two bits, and four that mean nothing
    spellings = {f"{key[:-3]}{letter}==" for letter in string.ascii_letters + string.digits + "+/"} - {key}
    same = [one for one in spellings if base64.b64decode(one) == base64.b64decode(key)]
    assert len(same) == 15
    for one in same:
        with pytest.raises(SealBroken):
            opened_by(Vault([OLD]), altered(sealed, "key", one))


@pytest.mark.parametrize("inside", [None, 1, "text", [], {}])
def test_the_sealed_form_with_something_else_inside_is_refused(inside: Any) -> None:
    with pytest.raises(SealBroken):
        opened_by(Vault([OLD]), {SEALED: inside})


def test_the_id_of_another_known_key_is_refused() -> None:
    with pytest.raises(SealBroken):
        opened_by(Vault([NEW, OLD]), altered(sealed_by(Vault([OLD])), "kid", "new"))


def test_a_form_of_a_newer_release_asks_for_an_update() -> None:
    with pytest.raises(Misconfigured, match=r"in form 2, and this release reads 1: update it$"):
        opened_by(Vault([OLD]), altered(sealed_by(Vault([OLD])), "v", 2))


def test_a_rewrap_changes_the_key_and_leaves_the_data_to_the_letter() -> None:
    sealed = sealed_by(Vault([OLD]))
    rewrapped = Vault([NEW, OLD]).rewrap(sealed)
    assert rewrapped[SEALED]["data"] == sealed[SEALED]["data"]
    assert opened_by(Vault([NEW]), rewrapped) == WORDS
    with pytest.raises(SealKeyUnknown):
        opened_by(Vault([OLD]), rewrapped)


def test_a_rewrap_under_the_same_key_changes_nothing() -> None:
    sealed = sealed_by(Vault([NEW, OLD]))
    assert Vault([NEW, OLD]).rewrap(sealed) is sealed


def test_what_is_not_json_is_refused_as_it_is_without_keys() -> None:
    for value in (float("nan"), {1, 2}, object()):
        with pytest.raises(BadInput, match=r"^not JSON \(.*\): use plain data"):
            sealed_by(Vault([OLD]), value)


def test_a_sealed_message_is_an_ordinary_message_without_a_word_of_its_input() -> None:
    vault = Vault([OLD])
    message = TaskMessage("chat", {"message": "Grace"}, (1,), TASK)
    sealed = seal_message(vault, message)
    received = parse(json.loads(json.dumps(sealed.wire_headers())), sealed.wire_body())
    assert b"Grace" not in sealed.wire_body() and "message" not in str(sealed.wire_headers())
    assert open_message(vault, received) == message
    stored = task_row(received)["input"]
    assert stored.keys() == {"args", "kwargs"} and open_input(vault, stored, task_id=TASK) == ([1], message.kwargs)


def test_a_plain_message_is_run_as_it_came_and_stored_sealed() -> None:
    vault = Vault([OLD])
    message = TaskMessage("chat", {"message": "Grace"}, id=TASK)
    assert open_message(vault, message) == message
    stored = seal_received(vault, message)
    assert is_sealed(stored.kwargs) and seal_received(vault, stored) is stored


def test_without_keys_a_message_is_left_alone() -> None:
    message = TaskMessage("chat", {"message": "Grace"}, (1,), TASK)
    assert seal_message(Vault(), message) is message and open_message(Vault(), message) == message
    with pytest.raises(BadInput, match="must not be named"):
        seal_message(Vault(), replace(message, kwargs={SEALED: 1}))


def test_a_sealed_input_of_another_task_or_with_plain_inputs_beside_it_is_refused() -> None:
    vault = Vault([OLD])
    sealed = seal_message(vault, TaskMessage("chat", {"message": "Grace"}, id=TASK))
    for forged in (replace(sealed, id=uuid4()), replace(sealed, args=(1,))):
        with pytest.raises(SealBroken):
            open_message(vault, forged)
    assert opened_by(vault, sealed.kwargs, INPUT)["kwargs"] == {"message": "Grace"}


def test_a_new_key_is_a_line_that_is_read_back() -> None:
    line = new_key_line()
    (key,) = read_keys(line)
    assert len(key.secret) == 32 and line.startswith(f"{key.id}:") and line != new_key_line()


def test_keys_are_read_in_their_order() -> None:
    first, second = new_key_line(), new_key_line()
    assert [f"{key.id}:" in line for key, line in zip(read_keys(f"{first}, {second}"), (first, second), strict=True)]
    assert read_keys("") == read_keys("  ") == ()


GOOD, OTHER = new_key_line(), new_key_line()
SHORT = base64.b64encode(os.urandom(16)).decode()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.partition(":")[2], "entry 1 is not one"),
        (f"{GOOD},", "entry 2 is not one"),
        (f":{GOOD}", "entry 1 is not one"),
        (f"a b:{GOOD.partition(':')[2]}", "entry 1 is not one"),
        (":".join(reversed(GOOD.split(":"))), "entry 1 is not one"),
        (f"{GOOD},k2:{GOOD.partition(':')[2][:-3]}!!!", "must be base64: entry 2 is not"),
        (f"{GOOD[:-8]}!{GOOD[-8:]}", "must be base64: entry 1 is not"),
        (f"k1:{SHORT}", "must have 32 bytes each: entry 1 has 16"),
        (f"{GOOD},{GOOD.partition(':')[0]}:{OTHER.partition(':')[2]}", "entries 1 and 2 have the same id"),
        (f"{GOOD},{OTHER},k3:{GOOD.partition(':')[2]}", "entries 1 and 3 are the same key"),
    ],
)
def test_wrong_keys_are_refused_by_their_place_and_never_shown(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        read_keys(text)
    assert str(caught.value).startswith("keys must ")
    assert not any(part and part in str(caught.value) for part in text.replace(",", ":").split(":") if len(part) > 4)


def test_keys_are_shown_by_their_ids_alone() -> None:
    (key,) = read_keys(GOOD)
    shown = f"{key!r} {Vault([key])!r}"
    assert key.id in shown and repr(key.secret) not in shown and GOOD.partition(":")[2] not in shown


def test_a_master_key_of_the_wrong_length_or_name_is_refused() -> None:
    for name, secret in (("k1", b"short"), ("a:b", os.urandom(32)), ("", os.urandom(32))):
        with pytest.raises(ValueError, match="must"):
            MasterKey(name, secret)
