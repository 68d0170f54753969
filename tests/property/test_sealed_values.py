"""Any JSON comes back from the vault as it went in; altered or moved, it comes back as a refusal."""

import base64
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.contracts import TaskMessage
from shared.errors import FleetError, SealBroken
from shared.ledger.sealed_input import open_message, seal_message
from shared.ledger.vault import SEALED, Vault, step_role
from shared.ledger.vault_knobs import MasterKey
from tests.property.test_messages_on_the_wire import inputs, values

OLD, NEW = MasterKey("old", bytes(range(32))), MasterKey("new", bytes(range(32, 64)))
TASK = UUID("00000000-0000-4000-8000-000000000001")
everything = values | st.text(st.characters(categories=["Cs", "Ll"]))
places = st.tuples(st.uuids(), st.builds(step_role, st.text(max_size=20), st.integers(0, 99)))


@given(everything, places)
def test_any_json_comes_back_before_and_after_a_rotation(value: Any, place: tuple[UUID, str]) -> None:
    task_id, role = place
    sealed = Vault([OLD]).seal(value, task_id=task_id, role=role)
    assert Vault([NEW, OLD]).open(sealed, task_id=task_id, role=role) == value
    assert Vault([NEW]).open(Vault([NEW, OLD]).rewrap(sealed), task_id=task_id, role=role) == value


@given(everything, places, places)
def test_a_value_moved_to_any_other_place_is_refused(
    value: Any, here: tuple[UUID, str], there: tuple[UUID, str]
) -> None:
    assume(here != there)
    sealed = Vault([OLD]).seal(value, task_id=here[0], role=here[1])
    with pytest.raises(SealBroken):
        Vault([OLD]).open(sealed, task_id=there[0], role=there[1])


@given(everything, st.sampled_from(["key", "data"]), st.data())
def test_any_flipped_bit_is_refused(value: Any, field: str, data: st.DataObject) -> None:
    sealed = Vault([OLD]).seal(value, task_id=TASK, role="output")
    raw = bytearray(base64.b64decode(sealed[SEALED][field]))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    forged = {SEALED: {**sealed[SEALED], field: base64.b64encode(raw).decode()}}
    with pytest.raises(SealBroken):
        Vault([OLD]).open(forged, task_id=TASK, role="output")


@given(everything, st.sampled_from(["v", "kid", "key", "data"]), st.data())
def test_any_other_letter_is_refused(value: Any, field: str, data: st.DataObject) -> None:
    sealed = Vault([OLD, NEW]).seal(value, task_id=TASK, role="output")
    text = str(sealed[SEALED][field])
    at, letter = data.draw(st.integers(0, len(text) - 1)), data.draw(st.characters())
    assume(text[at] != letter)
    forged = {SEALED: {**sealed[SEALED], field: text[:at] + letter + text[at + 1 :]}}
    with pytest.raises(FleetError):
        Vault([OLD, NEW]).open(forged, task_id=TASK, role="output")


@given(values)
def test_anything_in_the_sealed_form_is_opened_or_refused_and_never_crashes(inside: Any) -> None:
    with pytest.raises(FleetError):
        Vault([OLD]).open({SEALED: inside}, task_id=TASK, role="output")


@given(inputs, st.lists(values, max_size=3).map(tuple), st.uuids())
def test_any_input_arrives_sealed_as_it_was_sent(kwargs: Any, args: tuple[Any, ...], task_id: UUID) -> None:
    message = TaskMessage("a", kwargs, args, task_id)
    assert open_message(Vault([OLD]), seal_message(Vault([OLD]), message)) == message
