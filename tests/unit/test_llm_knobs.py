"""Knobs of the outside rooms: secrets stay hidden and nonsense refuses to start, naming the knob."""

import pytest
from pydantic import SecretStr

from shared.llm.knobs import LLMKnobs
from shared.memory.knobs import MemoryKnobs
from shared.retrieval.knobs import RetrievalKnobs


def test_the_api_key_is_in_no_repr() -> None:
    assert "sk-secret" not in repr(LLMKnobs(api_key=SecretStr("sk-secret")))
    assert "root:pw" not in repr(RetrievalKnobs(token=SecretStr("root:pw")))


def test_llm_knobs_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match="base_url"):
        LLMKnobs(base_url="ftp://x")
    with pytest.raises(ValueError, match="total_timeout_s"):
        LLMKnobs(total_timeout_s=0)
    with pytest.raises(ValueError, match="max_connections"):
        LLMKnobs(max_connections=0)
    with pytest.raises(ValueError, match="idle_timeout_s"):
        LLMKnobs(idle_timeout_s=0)
    with pytest.raises(ValueError, match="min_tokens_per_s"):
        LLMKnobs(min_tokens_per_s=-1)
    for extra in ("[]", "{", ""):
        with pytest.raises(ValueError, match="extra_body"):
            LLMKnobs(extra_body=extra)


def test_memory_knobs_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match="redis_url"):
        MemoryKnobs(redis_url="http://x")
    with pytest.raises(ValueError, match="ttl_s"):
        MemoryKnobs(ttl_s=0)
    with pytest.raises(ValueError, match="rest_s"):
        MemoryKnobs(rest_s=-1)


def test_retrieval_knobs_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match="uri"):
        RetrievalKnobs(uri="./milvus.db")
    with pytest.raises(ValueError, match="timeout_s"):
        RetrievalKnobs(timeout_s=0)
