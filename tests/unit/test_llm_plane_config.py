"""The LLM plane's file: what it means, and that every mistake is named with file, line and key before a run starts."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.errors import Misconfigured
from shared.llm.config_file import NO_KEY, one_endpoint, read_config, read_text, strangers
from shared.llm.knobs import LLMKnobs
from shared.llm.rules import adapter_knobs, key_rules, purses, retry_knobs

GOOD = """\
version: 1
currency: EUR
endpoints:
  first: {base_url: "https://api.one.example/v1", api_key: {env: ONE_KEY}}
  second:
    base_url: http://10.0.0.7:8000/v1
    breaker: {failure_threshold: 3}
models:
  big: {endpoint: first, name: big-2, price: {input_per_million: 2.5, output_per_million: 10}}
  small: {endpoint: second, price: {input_per_million: 0, output_per_million: 0}}
chains:
  default: [big, small]
budgets:
  day: {money: 10}
"""
ENVIRONMENT = {"ONE_KEY": "sk-one-secret"}


def refusal(text: str) -> str:
    with pytest.raises(Misconfigured) as caught:
        read_text(text, source="llm.yaml", environment=ENVIRONMENT)
    return caught.value.message


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_good_file_is_read() -> None:
    read = read_text(GOOD, source="llm.yaml", environment=ENVIRONMENT)
    assert read.config.chain("anything") == ("big", "small")
    assert [read.config.key(name) for name in ("big", "small")] == ["first:big-2", "second:small"]
    assert read.keys == {"first": SecretStr("sk-one-secret"), "second": NO_KEY}
    assert read.warnings == ()


def test_a_secret_is_in_no_picture_of_the_configuration() -> None:
    read = read_text(GOOD, source="llm.yaml", environment=ENVIRONMENT)
    assert "sk-one-secret" not in f"{read!r} {read.config!r} {read.config.model_dump_json()}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("base_url: http:", "base_ulr: http:",
         "line 6, endpoints.second.base_ulr: no such key; did you mean base_url?"),
        ("endpoint: second", "endpoint: secnd",
         "line 10, models.small.endpoint: no endpoint is named secnd; did you mean"),
        ("[big, small]", "[big, tiny]", "line 12, chains.default[1]: no model is named tiny; there are: big, small"),
        ("[big, small]", "[big, first]", "line 12, chains.default[1]: no model is named first; first is an endpoint"),
        ("[big, small]", "[big, big]", "line 12, chains.default[1]: big is in this chain already"),
        ("[big, small]", "big", "line 12, chains.default: input should be a list (got 'big')"),
        ("[big, small]", "[]", "line 12, chains.default: "),
        ("money: 10", "money: -1", "line 14, budgets.day.money: input should be greater than or equal to 0 (got -1)"),
        ("money: 10", "money: .nan", "line 14, budgets.day.money: input should be a finite number"),
        ("money: 10", "money: ten", "line 14, budgets.day.money: input should be a valid number (got 'ten')"),
        (", price: {input_per_million: 0, output_per_million: 0}", "", "line 10, models.small: it needs a price"),
        ("{env: ONE_KEY}", "{env: NO_KEY}",
         "line 4, endpoints.first.api_key.env: the environment variable NO_KEY is not set"),
        ("{env: ONE_KEY}", "{file: /nowhere/key}",
         "line 4, endpoints.first.api_key.file: the file /nowhere/key cannot be read"),
        ("{env: ONE_KEY}", "{env: A, file: b}", "line 4, endpoints.first.api_key: say where it is"),
        ("https:", "ftp:", "line 4, endpoints.first.base_url: "),
        ("failure_threshold: 3", "failure_threshold: 0", "line 7, endpoints.second.breaker.failure_threshold: "),
        ("failure_threshold: 3", "success_threshold: 4",
         "line 7, endpoints.second.breaker: successes_to_close must not exceed"),
        ("failure_threshold: 3", "failure_treshold: 3", "did you mean failure_threshold?"),
        ("version: 1", "version: 2", "line 1, version: input should be 1 (got 2)"),
        ("version: 1\n", "", "line 1, version: this key is missing"),
        ("  default:", "  usual:", "line 11, chains: one chain must be named default"),
        ("currency: EUR", "agents: {chat: {chain: fast}}",
         "line 2, agents.chat.chain: no chain is named fast; there are: default"),
        ("currency: EUR", "agents: {chat: {when_budget_spent: L3}}", "line 2, agents.chat.when_budget_spent: "),
        ("  second:", "  first:", "line 5, endpoints.first: already set in line 4"),
        ("  second:", "  2:", "line 5, endpoints.2: a key must be text"),
        ("first: {base", "first: {dialect: gopher, base",
         "line 4, endpoints.first.dialect: input should be 'openai' or 'anthropic'"),
        ("[big, small]", "[big", "line 13: not YAML: "),
        ("currency: EUR", "currency: !!python/object:os.x 1", "line 2: not YAML: could not determine a constructor"),
        ("endpoints:", "endpoints: &all\n  all: *all", "nested too deep"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_key(old: str, new: str, words: str) -> None:
    said = refusal(changed(old, new))
    assert said.startswith("llm.yaml, line ") and words in said


def test_a_key_written_into_the_file_is_refused_and_not_repeated() -> None:
    said = refusal(changed("{env: ONE_KEY}", "sk-oops-in-the-file"))
    assert "line 4, endpoints.first.api_key: say where it is" in said and "sk-oops" not in said


@pytest.mark.parametrize("text", ["", "just words", "- 1\n- 2", "a: b: c", "\x00"])
def test_what_is_no_such_file_at_all_is_refused_in_one_sentence(text: str) -> None:
    assert refusal(text).startswith("llm.yaml, line 1: ")


@pytest.mark.parametrize("budget", ["budgets: {run: {money: 1}}", "tenants: {acme: {budget: {money: 1}}}"])
def test_every_model_of_every_chain_needs_a_price_under_a_wide_budget(budget: str) -> None:
    text = GOOD.replace("budgets:\n  day: {money: 10}\n", "").replace(
        ", price: {input_per_million: 0, output_per_million: 0}", ""
    )
    read_text(text, source="llm.yaml", environment=ENVIRONMENT)
    assert "models.small: it needs a price" in refusal(f"{text}{budget}\n")


def test_an_agents_own_budget_asks_for_the_price_of_every_model_because_a_request_may_name_any() -> None:
    text = GOOD.replace("budgets:\n  day: {money: 10}\n", "").replace(
        ", price: {input_per_million: 0, output_per_million: 0}", ""
    )
    text = text.replace("default: [big, small]", "default: [big]")
    read_text(text, source="llm.yaml", environment=ENVIRONMENT)
    said = refusal(text + "agents:\n  scribe: {run_budget: {money: 5}}\n")
    assert "line 10, models.small: it needs a price (0 if it is free): agents.scribe.run_budget bounds money" in said


def test_a_budget_in_money_and_models_that_nobody_listed_do_not_go_together() -> None:
    said = refusal(changed("currency: EUR", "unlisted_models: true"))
    assert "line 2, unlisted_models: a model that is not listed has no price, and budgets.day bounds money" in said
    read_text(
        changed("currency: EUR", "unlisted_models: true").replace("money", "tokens"),
        source="x",
        environment=ENVIRONMENT,
    )


def test_one_model_under_two_names_is_refused_for_its_breaker_and_limits_would_be_one() -> None:
    said = refusal(changed("endpoint: second", "endpoint: first, name: big-2"))
    assert "line 10, models.small: it is big once more: the same name at the same endpoint" in said


def test_the_policy_of_an_agent_that_is_not_there_is_a_warning_with_what_was_perhaps_meant() -> None:
    text = changed("currency: EUR", "agents: {summarize: {cache: never}, chat: {cache: never}}")
    config = read_text(text, source="x", environment=ENVIRONMENT).config
    assert list(strangers(config, agents=("chat", "summarise"))) == [
        "agents.summarize: no agent of that name is loaded here; did you mean summarise?"
    ]


def test_a_chain_whose_models_fail_together_is_a_warning() -> None:
    same_host = changed("http://10.0.0.7:8000/v1", "https://api.one.example/other/v1")
    (warning,) = read_text(same_host, source="llm.yaml", environment=ENVIRONMENT).warnings
    assert warning == "chain default: big and small fail together (failure domain api.one.example)"
    other_port = changed("http://10.0.0.7:8000/v1", "https://api.one.example:8443/v1")
    assert read_text(other_port, source="llm.yaml", environment=ENVIRONMENT).warnings == (warning,)
    same_key = changed(
        "base_url: http://10.0.0.7:8000/v1", "base_url: http://b.example/v1\n    api_key: {env: ONE_KEY}"
    )
    (warning,) = read_text(same_key, source="llm.yaml", environment=ENVIRONMENT).warnings
    assert warning == "chain default: big and small fail together (one key, in the environment variable ONE_KEY)"
    told = same_host.replace("breaker:", "failure_domain: another region\n    breaker:")
    assert read_text(told, source="llm.yaml", environment=ENVIRONMENT).warnings == ()


def test_a_secret_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    text = changed("{env: ONE_KEY}", f"{{file: {tmp_path / 'key'}}}")
    assert read_text(text, source="x", environment={}).keys["first"] == SecretStr("sk-from-file")
    (tmp_path / "key").write_text(" \n")
    assert "is empty" in refusal(text)


def test_a_file_that_is_not_there_is_named_with_its_variable() -> None:
    with pytest.raises(Misconfigured, match=r"FLEET_LLM_CONFIG: /nowhere/llm\.yaml cannot be read: No such file"):
        read_config(Path("/nowhere/llm.yaml"), environment={})


def test_anchors_and_merges_are_understood_and_still_checked() -> None:
    text = changed("  second:\n", "  third: &more {base_url: http://c.example/v1}\n  second:\n    <<: *more\n")
    read_text(text, source="llm.yaml", environment=ENVIRONMENT)
    wrong = text.replace("{base_url: http://c", "{speed: 3, base_url: http://c")
    assert "speed: no such key" in refusal(wrong)


def test_without_a_file_the_one_endpoint_of_the_environment_is_the_whole_plane() -> None:
    knobs = LLMKnobs(
        base_url="http://127.0.0.1:9/v1", model="tiny", api_key=SecretStr("sk-x"), total_timeout_s=7.0,
        dialect="anthropic",
    )  # fmt: skip
    read = one_endpoint(knobs)
    assert (read.config.chain("chat"), read.config.key("tiny")) == (("tiny",), "127.0.0.1-9:tiny")
    assert read.config.endpoints["127.0.0.1-9"].dialect == "anthropic"
    made = adapter_knobs(read.config.endpoints["127.0.0.1-9"], key=read.keys["127.0.0.1-9"])
    kept = {one.name for one in fields(LLMKnobs)} - {"config", "model", "read_timeout_s", "max_tokens"}
    assert {name for name in kept if getattr(made, name) != getattr(knobs, name)} == set()


@pytest.mark.parametrize(
    ("base_url", "model", "key"),
    [
        ("https://me:secret@api.one.example/v1?api-version=1", "gpt-4o", "api.one.example:gpt-4o"),
        ("http://[::1]:8000/v1", "llama3:8b", "1--8000:llama3:8b"),
        ("http://h/v1", "org/model", "h:org/model"),
        ("http://h/v1", "模型", "h:模型"),
    ],
)
def test_the_one_endpoint_is_named_after_its_host_and_its_model(base_url: str, model: str, key: str) -> None:
    config = one_endpoint(LLMKnobs(base_url=base_url, model=model)).config
    assert config.key(config.chain("chat")[0]) == key


def test_rules_reach_whoever_enforces_them() -> None:
    limits = "limits: {requests_per_min: 600, concurrency: 8}, tenant_limits: {requests_per_min: 60}, endpoint: second"
    config = read_text(changed("endpoint: second", limits), source="x", environment=ENVIRONMENT).config
    rules = key_rules(config)("second:small")
    assert (rules.breaker.failures_in_a_row, rules.limits.requests_per_min, rules.limits.concurrency) == (3, 600, 8)
    assert rules.tenant_limits.requests_per_min == 60
    assert key_rules(config)("second:another").limits.requests_per_min is None
    assert key_rules(config)("second:another").breaker.failures_in_a_row == 3
    assert key_rules(config)("elsewhere:x").breaker.failures_in_a_row == 5
    retry = config.endpoints["first"].retry
    assert (retry_knobs(retry, has_fallback=True).retries, retry_knobs(retry, has_fallback=False).retries) == (1, 3)


def test_a_call_draws_on_its_runs_agents_tenants_and_days_budgets() -> None:
    text = (
        GOOD
        + "  run: {tokens: 100}\n  tenant: {money: 50}\n  agent: {tokens: 7}\nagents: {scribe: {budget: {money: 1}}}\n"
    )
    config = read_text(text, source="x", environment=ENVIRONMENT).config
    found = [
        (one.level, one.name, one.tokens, one.money, one.period_s)
        for one in purses(config, tenant="acme", agent="scribe", run="r1")
    ]
    assert found == [
        ("run", "r1", 100, None, None),
        ("agent", "scribe", None, 1.0, 86_400),
        ("tenant", "acme", None, 50.0, 30 * 86_400),
        ("day", "acme", None, 10.0, 86_400),
    ]
    assert [one.level for one in purses(config, tenant="acme", agent="chat", run=None)] == ["agent", "tenant", "day"]


def test_a_runs_purse_is_remembered_until_its_deadline_however_far_away() -> None:
    config = read_text(GOOD + "  run: {tokens: 100}\n", source="x", environment=ENVIRONMENT).config
    year_s = 366 * 86_400.0
    for left_s, least_s in ((None, 32 * 86_400.0), (60.0, 32 * 86_400.0), (year_s, year_s)):
        run = next(purses(config, tenant="acme", agent="chat", run="r1", left_s=left_s))
        assert run.ttl_s >= least_s


def test_the_file_that_the_readme_shows_is_a_good_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"^```yaml\n(version: 1\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    configured = read_text(shown, source="README.md", environment={"OPENAI_API_KEY": "sk-1"})
    assert configured.warnings == ()
    assert configured.config.chain("summarise") == ("big", "small")
