"""Errors as the ledger and the command line show them."""

import pytest

from shared import errors
from shared.errors import BadInput, FleetError, LLMRateLimited, Permanent, Transient, from_dict


def every_error(kind: type[FleetError] = FleetError) -> list[type[FleetError]]:
    """The tree of shared/errors.py; rooms of workers may have errors of their own."""
    own = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(one for child in own for one in every_error(child))]


def test_an_error_is_shown_with_its_code_its_sentence_and_its_facts() -> None:
    shown = BadInput("text: too long", field="text", length=7).as_dict()
    assert shown == {"code": "bad_input", "message": "text: too long", "context": {"field": "text", "length": 7}}


def test_an_error_without_facts_shows_none() -> None:
    assert Permanent("no").as_dict() == {"code": "permanent", "message": "no"}


def test_a_transient_error_may_say_when_to_come_back() -> None:
    assert LLMRateLimited("slow down", retry_after_s=2.5, endpoint="e").retry_after_s == 2.5
    assert Transient("later").retry_after_s is None


def test_every_error_has_a_code_of_its_own_and_a_line_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    kinds = every_error()
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert [kind.__name__ for kind in kinds if kind.__name__ not in tree] == []


@pytest.mark.parametrize("kind", [one for one in every_error() if one is not FleetError])
def test_every_error_is_worth_a_retry_or_not_and_never_both(kind: type[FleetError]) -> None:
    assert issubclass(kind, Transient) + issubclass(kind, Permanent) + issubclass(kind, errors.Misconfigured) == 1


@pytest.mark.parametrize("kind", every_error())
def test_an_error_comes_back_from_the_record_as_what_it_was(kind: type[FleetError]) -> None:
    back = from_dict(kind("why", field="text").as_dict())
    assert (type(back), back.message, back.context) == (kind, "why", {"field": "text"})


def test_a_record_of_a_newer_release_comes_back_as_some_error() -> None:
    assert type(from_dict({"code": "unheard_of", "message": "why"})) is FleetError
