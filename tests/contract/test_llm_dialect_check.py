"""An endpoint that speaks another dialect is named at start, one that is down is not."""

import pytest

from shared.errors import Misconfigured
from shared.llm.config_file import Configured, read_text
from shared.llm.dialect_check import check_dialects, judge
from tests.fakes.chat_server import ChatServer, http, says, sends

REFUSAL = {"error": {"message": "you must provide a model parameter"}}


def configured(base_url: str, *, dialect: str = "openai") -> Configured:
    text = f"""\
version: 1
endpoints: {{one: {{base_url: "{base_url}", dialect: {dialect}, api_key: {{env: KEY}}}}}}
models: {{m: {{endpoint: one}}}}
chains: {{default: [m]}}
"""
    return read_text(text, source="llm.yaml", environment={"KEY": "sk-secret-of-this-test"})


@pytest.mark.parametrize("status", [200, 400, 422, 429])
async def test_an_endpoint_that_complains_in_json_about_the_empty_request_is_right(status: int) -> None:
    async with ChatServer(says(REFUSAL, status=status)) as server:
        assert await check_dialects(configured(server.base_url)) == ()
        assert server.requests == [{}], "a request that costs nothing"
        assert server.headers[0]["authorization"] == "Bearer sk-secret-of-this-test"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http(404, b"{}"), "answers 404: that path is unknown there"),
        (http(405, b"{}"), "answers 405"),
        (
            http(200, b"<html>Welcome</html>", content_type="text/html; charset=utf-8"),
            "answers with text/html that is no",
        ),
        (http(401, b"<html>Log in</html>", content_type="text/html"), "answers with text/html"),
        (http(302, b"", location="/login"), "answers 302: it sends elsewhere"),
        (http(200, b'["not", "an", "object"]'), "no JSON object"),
    ],
)
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_an_endpoint_of_another_dialect_refuses_the_start(answer: bytes, words: str, dialect: str) -> None:
    async with ChatServer(sends(answer)) as server:
        with pytest.raises(Misconfigured) as caught:
            await check_dialects(configured(server.base_url, dialect=dialect))
    assert f"endpoint one does not speak {dialect}: 127.0.0.1" in caught.value.message and words in caught.value.message
    assert "sk-secret" not in caught.value.message


@pytest.mark.parametrize("status", [400, 415, 422])
async def test_an_endpoint_that_complains_in_plain_words_is_doubtful_and_no_reason_not_to_start(status: int) -> None:
    async with ChatServer(sends(http(status, b"missing field `model`", content_type="text/plain"))) as server:
        (warning,) = await check_dialects(configured(server.base_url))
    assert warning == "endpoint one answers with text/plain that is no JSON object: perhaps it does not speak openai"


async def test_an_endpoint_that_is_down_or_refuses_its_key_is_a_warning() -> None:
    (warning,) = await check_dialects(configured("http://127.0.0.1:1/v1"))
    assert warning == "endpoint one cannot be reached at start (ConnectError)"
    async with ChatServer(says(REFUSAL, status=401)) as server:
        assert await check_dialects(configured(server.base_url)) == ("endpoint one refuses its key (401)",)
    async with ChatServer(says(REFUSAL, status=503)) as server:
        assert await check_dialects(configured(server.base_url)) == ()


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"null", b"1"])
def test_whatever_is_no_object_is_somebody_else(body: bytes) -> None:
    assert judge(200, content_type="", body=body) == "answers with something that is no JSON object"
