"""The bounds of a context and the cache key: pure, for any input."""

from hypothesis import given
from hypothesis import strategies as st

from shared.llm.messages import Message
from shared.memory.context import bounded, session_key

NAMES = st.text(alphabet="ab:%3A", max_size=6)
TALK = st.lists(st.text(max_size=20).map(lambda text: Message("user", text)), max_size=12)


def test_default_tenants_key_is_ctx_and_the_session() -> None:
    assert session_key("default", "s1") == "ctx:s1"


def test_other_tenants_keys_carry_their_name() -> None:
    assert session_key("acme", "s1") == "ctx:acme:s1"


@given(NAMES, NAMES, NAMES, NAMES)
def test_two_sessions_never_share_a_key(tenant: str, session: str, other_tenant: str, other_session: str) -> None:
    same = (tenant, session) == (other_tenant, other_session)
    assert (session_key(tenant, session) == session_key(other_tenant, other_session)) == same
    assert session_key("default", session) != session_key(other_tenant, other_session) or other_tenant == "default"


@given(TALK, st.integers(1, 15), st.integers(1, 200))
def test_context_is_the_newest_end_of_the_talk_within_both_bounds(
    talk: list[Message], limit: int, characters: int
) -> None:
    kept = bounded(talk, limit=limit, characters=characters)
    assert len(kept) <= limit
    assert sum(len(message.content) for message in kept) <= characters
    if len(kept) > 1:
        assert list(kept) == talk[-len(kept) :]


def test_context_leaves_nothing_out_that_fits() -> None:
    talk = [Message("user", "12345"), Message("assistant", "123"), Message("user", "12")]
    assert bounded(talk, limit=9, characters=5) == tuple(talk[1:])


def test_newest_message_that_is_too_long_is_cut_rather_than_lost() -> None:
    assert bounded([Message("user", "1234567")], limit=9, characters=5) == (Message("user", "12345"),)
