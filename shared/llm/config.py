"""The shape of the LLM plane's file: endpoints, models, prices, limits, budgets, and a chain of models per agent."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=0)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
UNLISTED = "*"


class Shape(BaseModel):
    """Frozen, and a key that nobody knows is an error: a typo must not become a default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, protected_namespaces=()
    )


class Secret(Shape):
    """Where a secret is, never the secret itself: exactly one of the two."""

    env: str | None = None
    """Name of the environment variable that holds it."""
    file: str | None = None
    """Path of a file that holds it; white space around it is dropped."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("name either env or file")
        return self

    def __str__(self) -> str:
        return f"the environment variable {self.env}" if self.env is not None else f"the file {self.file}"


class Timeouts(Shape):
    """Seconds, every one clamped to what the task's deadline leaves."""

    connect_s: Seconds = 3.0
    """For TCP, and again for TLS."""
    first_token_s: Seconds = 15.0
    """To the first piece of a streamed answer; an answer that is not streamed has only `total_s`."""
    idle_s: Seconds = 20.0
    """Between two pieces of a streamed answer; comments that keep a connection alive do not count."""
    total_s: Seconds = 60.0
    """For one attempt, from connection to last byte."""
    min_tokens_per_s: Annotated[float, Field(ge=0)] = 1.0
    """Slower streams are ended: alive, and of no use. 0 allows any pace."""
    throughput_window_s: Seconds = 20.0
    """Over which that pace is measured: long enough for a model that pauses to think."""


class BreakerPolicy(Shape):
    """When calls to a model at an endpoint stop, and how they start again."""

    failure_threshold: Count = 5
    """Failures in a row that open it."""
    window: Count = 100
    """Latest outcomes, of the whole fleet, that rates are taken over."""
    min_calls: Count = 20
    """Fewer outcomes than this make no rate."""
    failure_rate: Share = 0.5
    """Share of failures that opens it."""
    slow_call_s: Seconds = 60.0
    """A call that takes longer counts as slow."""
    slow_call_rate: Share = 0.8
    """Share of slow calls that opens it."""
    recovery_timeout_s: Seconds = 30.0
    """From opening to the first probes; doubles with every round of probes that fails."""
    max_recovery_timeout_s: Seconds = 300.0
    """Ceiling of that doubling."""
    half_open_max_calls: Count = 3
    """Probes at the same time, across the whole fleet."""
    success_threshold: Count = 2
    """Probes that must succeed before it closes."""


class RetryPolicy(Shape):
    """Quick tries at the same model, before the chain goes on to the next."""

    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """Tries after the first."""
    base_s: Seconds = 1.0
    """Upper end of the first wait; waits are random from zero (full jitter)."""
    factor: Annotated[float, Field(ge=1)] = 2.0
    """Growth of that upper end."""
    cap_s: Seconds = 30.0
    """Ceiling of a wait; a server's own word on when to return is never cut to it."""
    retries_before_fallback: Annotated[int, Field(ge=0, le=10)] = 1
    """The same, where the chain has another model to go to; a timeout goes there at once."""
    suspend_after_s: Seconds = 5.0
    """A longer wait is not slept in a worker's slot: the chain goes on, or the task is put back."""
    budget_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Retries per first try, over the fleet: what makes a storm of retries impossible."""


class Limits(Shape):
    """What a provider, or we, allow; unset means unlimited."""

    requests_per_min: Count | None = None
    input_tokens_per_min: Count | None = None
    output_tokens_per_min: Count | None = None
    concurrency: Count | None = None
    """Calls in flight, over the fleet."""


class Endpoint(Shape):
    """One API at one address, with one key."""

    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^/]")]
    """Where the API lives, with its version path (`…/v1`)."""
    dialect: Literal["openai", "anthropic"] = "openai"
    """What it speaks. OpenAI's is also that of Azure, vLLM, Ollama, DeepSeek, DashScope, and most gateways."""
    api_key: Secret | None = None
    """Where the key is; none for servers that want none."""
    failure_domain: str | None = None
    """What fails together, in a word of your own (a provider and region). Unset: the host name in `base_url`."""
    proxy_url: str | None = None
    """HTTP proxy for this endpoint; proxies of the environment are not used."""
    max_connections: Count = 4096
    """Calls in flight per process."""
    keepalive_s: Seconds = 4.0
    """Seconds an idle connection is kept: below the 5 s after which uvicorn (vLLM and friends) hangs up."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name under which the bound on an answer is sent; OpenAI's reasoning models know only the second."""
    stream_answers: bool = False
    """Have every answer streamed, so that a stalled one is noticed after `idle_s` instead of `total_s`; costs CPU."""
    stream_usage: bool = True
    """Whether streams are asked for their token counts; some servers refuse the question."""
    extra_body: dict[str, Any] = {}
    """Merged into every request's body: what one provider wants and no other knows."""
    key_header: Literal["authorization", "api-key"] = "authorization"
    """Where the key goes; Azure reads `api-key`."""
    disabled_s: Seconds = 300.0
    """How long a spent quota or a refused key takes it out, until probes ask again."""
    timeouts: Timeouts = Timeouts()
    breaker: BreakerPolicy = BreakerPolicy()
    retry: RetryPolicy = RetryPolicy()

    @property
    def host(self) -> str:
        """Host and port, never a credential."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2].lower()

    @property
    def fate(self) -> str:
        """What fails together: as declared, or else one machine, whatever listens on its ports."""
        return self.failure_domain or urlsplit(self.base_url).hostname or self.host


class Price(Shape):
    """Money per million tokens, in the file's currency."""

    input_per_million: Money
    output_per_million: Money


class Model(Shape):
    """One model at one endpoint, with what it costs and what it allows."""

    endpoint: Name
    name: str | None = None
    """As the endpoint calls it; unset: as this file does."""
    family: str | None = None
    """Models of one family may answer for each other from the cache; unset: the model alone."""
    context_tokens: Count | None = None
    """Input and output together; a longer prompt is refused before it is sent. Unset: not checked."""
    max_tokens: Count = 1024
    """Bound on an answer when the request names none: an unbounded answer is an unbounded bill."""
    price: Price | None = None
    """Needed as soon as a budget in money covers the model; a free one costs 0."""
    tools: bool = True
    """Whether it can call tools; one that cannot is never asked to act."""
    limits: Limits = Limits()
    """Of the whole fleet."""
    tenant_limits: Limits = Limits()
    """Of each tenant."""


class Budget(Shape):
    """An upper bound on spending; unset means unbounded, 0 means nothing."""

    tokens: Tokens | None = None
    money: Money | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether it bounds anything."""
        return self.tokens is not None or self.money is not None


class Budgets(Shape):
    """Checked before a call and settled after it, from the narrowest to the widest."""

    run: Budget = Budget()
    """One run, its children included."""
    agent: Budget = Budget()
    """Each agent of a tenant, a day (UTC)."""
    tenant: Budget = Budget()
    """Each tenant, thirty days."""
    day: Budget = Budget()
    """Each tenant, a day (UTC)."""


class AgentPolicy(Shape):
    """How one agent's calls are answered."""

    chain: Name = "default"
    """Its chain of models."""
    must_act: bool = False
    """Its tasks act through tools: when they cannot, the answer says `could_not_act` instead of chatting."""
    when_down: Literal["degrade", "wait"] = "degrade"
    """All models down: answer from further down the ladder, or put the task back until one is due."""
    patience_s: Annotated[float, Field(ge=0)] = 60.0
    """Models are up but busy (rate limits): the longest wait for which a task is put back instead of degraded."""
    when_budget_spent: Literal["refuse", "L1", "L2", "L4"] = "refuse"
    """Budget spent: fail as BudgetSpent, try cheaper models of the chain, a cached answer, or the static one."""
    cache: Literal["never", "auto", "degraded", "fresh"] = "auto"
    """Whose answers are kept: nobody's; those at temperature <= 0.3; all, for when no model is up; all, and given
    again while fresh although models are up."""
    prompt_version: str = "1"
    """Raise it when the agent's prompts change: answers kept under the old one are not used any more."""
    static_answer: str | None = None
    """The last resort's words; unset: `ladder.static_answer`."""
    budget: Budget | None = None
    """Instead of `budgets.agent`."""
    run_budget: Budget | None = None
    """Instead of `budgets.run`."""


class TenantPolicy(Shape):
    """What one tenant may spend."""

    budget: Budget | None = None
    """Instead of `budgets.tenant`."""


class CachePolicy(Shape):
    """Answers kept for when no model is up."""

    fresh_s: Seconds = 300.0
    """Age up to which an agent with `cache: fresh` is given an answer again."""
    stale_s: Seconds = 86_400.0
    """Age up to which an answer is given when no model is up."""
    max_answers: Count = 10_000
    """Per tenant; the ones that expire first go first."""
    secret: Secret | None = None
    """Key of the keys' HMAC; unset: a random one that is kept in Redis."""


class LadderPolicy(Shape):
    """How degradation looks and how it ends."""

    recover_over_s: Annotated[float, Field(ge=0)] = 10.0
    """From a model's first answer after an outage until it gets all calls again; its share grows meanwhile."""
    first_share: Share = 0.1
    """Its share at the start of that time."""
    static_answer: str = "I cannot answer right now: the language models are unavailable. Please try again shortly."
    """The last resort, in friendly words."""
    could_not_act: str = "I could not do what you asked: {reason}. Nothing was changed."
    """What is said for a task that had to act and could not; `{reason}` is replaced."""


class LLMConfig(Shape):
    """The whole file."""

    version: Literal[1]
    currency: str = "USD"
    """Of every price and budget; a word for people."""
    endpoints: Annotated[dict[Name, Endpoint], Field(min_length=1)]
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    chains: Annotated[dict[Name, Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]], Field(min_length=1)]
    """Models in the order in which they are asked; agents without a policy use `default`."""
    unlisted_models: bool = False
    """A request may name a model that is not listed: it goes to the chain's first endpoint, without price or limit."""
    agents: dict[str, AgentPolicy] = {}
    tenants: dict[str, TenantPolicy] = {}
    budgets: Budgets = Budgets()
    cache: CachePolicy = CachePolicy()
    ladder: LadderPolicy = LadderPolicy()

    def policy(self, agent: str) -> AgentPolicy:
        """An agent's policy, or the one of agents that have none."""
        return self.agents.get(agent, _USUAL)

    def chain(self, agent: str) -> tuple[str, ...]:
        """The models of an agent, first choice first."""
        return self.chains[self.policy(agent).chain]

    def widest_context(self, agent: str) -> int | None:
        """Tokens that the widest model of an agent's chain takes: what a submit can be refused by. None: unknown."""
        contexts = [self.models[name].context_tokens for name in self.chain(agent)]
        known = [one for one in contexts if one is not None]
        return max(known) if len(known) == len(contexts) else None

    def model_name(self, model: str) -> str:
        """What the endpoint calls a model."""
        return self.models[model].name or model

    def key(self, model: str) -> str:
        """What breakers, limits and statistics are kept under: a model at an endpoint."""
        return f"{self.models[model].endpoint}:{self.model_name(model)}"

    def every_key(self) -> dict[str, str]:
        """Every key there can be, and its endpoint."""
        listed = {self.key(name): model.endpoint for name, model in self.models.items()}
        first = [self.models[chain[0]].endpoint for chain in self.chains.values()] if self.unlisted_models else []
        return listed | {unlisted_key(endpoint): endpoint for endpoint in first}


def unlisted_key(endpoint: str) -> str:
    """The one key of all models that requests name and no file lists: callers must not make keys without end."""
    return f"{endpoint}:{UNLISTED}"


_USUAL = AgentPolicy()


def config_schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors; deploy/llm.v1.schema.json is a copy."""
    schema = LLMConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "LLM plane, version 1"}
