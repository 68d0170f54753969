"""The one door to every dialect: what it refuses, and what it imports."""

import sys

import pytest
from pydantic import SecretStr

from shared.errors import Misconfigured
from shared.llm.adapters import open_adapter
from shared.llm.knobs import LLMKnobs


def test_a_dialect_whose_sdk_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shared.llm.anthropic_chat", raising=False)
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(Misconfigured, match=r"backup speaks anthropic: pip install 'agent-fleet\[anthropic\]'"):
        open_adapter(LLMKnobs(), dialect="anthropic", name="backup")


@pytest.mark.parametrize("key", ["sk-1\n", "sk 1\r\n", "schlüssel"])
def test_a_key_that_no_header_takes_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(Misconfigured, match="API key") as caught:
        open_adapter(LLMKnobs(api_key=SecretStr(key)))
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [("http://user:pw@h:1/v1", "h:1"), ("https://api.openai.com/v1", "api.openai.com")],
)
def test_an_endpoint_without_a_name_is_called_by_its_host_and_never_by_its_credentials(url: str, name: str) -> None:
    assert open_adapter(LLMKnobs(base_url=url)).endpoint == name
    assert open_adapter(LLMKnobs(base_url=url), name="primary").endpoint == "primary"
