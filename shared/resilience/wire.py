"""How questions to the scripts in Redis are written and their answers read; no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from struct import Struct
from typing import cast
from urllib.parse import quote

from redis.asyncio.connection import DefaultParser
from redis.exceptions import ResponseError

from shared.resilience.circuit import FOREVER, Mode, Operate
from shared.resilience.circuit import retry_after_s as circuit_retry_after_s
from shared.resilience.exchange import Answer, Ask, Denial, KeyStats, Scope, Settled, Settlement
from shared.resilience.knobs import KeyRules, Limits
from shared.resilience.lanes import Adapted, concurrency, rates
from shared.resilience.outcome import Learn
from shared.resilience.spending import Budget, Short, Spent

SEPARATOR = b"\x1f"
LEARNS: dict[Learn, int] = {"neutral": 0, "ok": 1, "failure": 2}
HOWS = {"read": 0, "check": 1, "force": 2}


@dataclass(frozen=True, slots=True)
class Script:
    """A text and the name Redis knows it by."""

    text: str
    sha: str


@dataclass(frozen=True, slots=True)
class Call:
    """One script, its keys (all in one hash slot) and its arguments."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[bytes | str, ...]


@cache
def script(name: str) -> Script:
    """The script of that name, with the prelude before it."""
    folder = files("shared.resilience") / "lua"
    text = (folder / "prelude.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def command(call: Call, *, knows_script: bool) -> bytes:
    """A script as it goes over the wire. Packed here: redis-py needs five times as long for it."""
    arguments = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in call.args]
    parts = [_head(call.script, call.keys, len(arguments), knows_script)]
    for argument in arguments:
        parts += [b"$%d\r\n" % len(argument), argument, b"\r\n"]
    return b"".join(parts)


def replies_in(data: bytes) -> tuple[list[bytes | Exception], bytes]:
    """The replies of scripts, each one string or an error, and what is left: the beginning of the next.

    An error that concerns the whole connection is the last.

    Raises: ValueError where it is something else.
    """
    replies: list[bytes | Exception] = []
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        kind, line, begin = data[at : at + 1], data[at + 1 : end], end + 2
        if kind == b"$":
            end = begin + int(line)
            if end < begin:
                raise ValueError("no string")
            if len(data) < end + 2:
                break
            replies.append(data[begin:end])
            begin = end + 2
        elif kind == b"-":
            error = DefaultParser.parse_error(line.decode("utf-8", "replace"))  # type: ignore[no-untyped-call]
            replies.append(error)
            if not isinstance(error, ResponseError):
                return replies, b""
        else:
            raise ValueError("neither a string nor an error")
        at = begin
    return replies, data[at:]


@lru_cache(4096)
def _head(one: Script, keys: tuple[str, ...], arguments: int, knows_script: bool) -> bytes:
    """The command up to its arguments."""
    name, body = ("EVALSHA", one.sha) if knows_script else ("EVAL", one.text)
    words = [word.encode() for word in (name, body, str(len(keys)), *keys)]
    head = b"*%d\r\n" % (len(words) + arguments)
    return head + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@lru_cache(4096)
def _safe(name: str, *, but: str = ":/") -> str:
    """A name that cannot be mistaken for a hash tag or for another key's part."""
    return quote(name, safe=but, errors="surrogatepass") or "%"


@lru_cache(4096)
def _keys_of(prefix: str, key: str) -> tuple[str, str, str, str]:
    tagged = f"{prefix}:gate:{{{_safe(key)}}}"
    return tagged, f"{tagged}:window", f"{tagged}:probes", f"{tagged}:flying"


@lru_cache(4096)
def _all_keys(prefix: str, key: str, tenant: str) -> tuple[str, ...]:
    own = _keys_of(prefix, key)
    return (*own, f"{own[0]}:tenant:{_safe(tenant)}", f"{own[0]}:tenant-flying:{_safe(tenant)}")


@lru_cache(256)
def _limits(limits: Limits) -> tuple[float, ...]:
    """As `lane_of` in the prelude reads them; -1 is no limit."""
    each = [-1.0 if rate is None else rate for rate in rates(limits)]
    return (*each, -1 if limits.concurrency is None else limits.concurrency, limits.burst_s)


@lru_cache(64)
def _doubles(count: int) -> Struct:
    return Struct(f"<{count}d")


def _packed(*numbers: float) -> bytes:
    """Numbers as the prelude unpacks them."""
    return _doubles(len(numbers)).pack(*numbers)


@lru_cache(256)
def _admit_rules(rules: KeyRules) -> bytes:
    breaker, retries = rules.breaker, rules.retry_budget
    return _packed(
        breaker.probes, breaker.probe_lease_s, breaker.last_probe_every_s,
        retries.ratio, retries.floor_per_s, retries.cap,
        *_limits(rules.limits), *_limits(rules.tenant_limits), _ttl_s(rules),
    )  # fmt: skip


@lru_cache(256)
def _settle_rules(rules: KeyRules) -> bytes:
    one, adapt = rules.breaker, rules.adapt
    return _packed(
        one.failures_in_a_row, one.window, one.min_calls, one.failure_rate, one.slow_rate, one.open_s, one.open_factor,
        one.open_max_s, one.jitter, one.successes_to_close, adapt.enabled, adapt.factor, adapt.floor,
        rules.not_before_max_s, *_limits(rules.limits), *_limits(rules.tenant_limits), _ttl_s(rules),
    )  # fmt: skip


def _ttl_s(rules: KeyRules) -> int:
    """How long a key that nobody calls is remembered."""
    return int(max(3600.0, 4 * rules.breaker.open_max_s, rules.not_before_max_s + 60.0))


def admit(prefix: str, ask: Ask) -> Call:
    """The question of `GateStore.admit`, budgets apart."""
    numbers = _packed(ask.is_last, ask.attempt, ask.lease_s, ask.tokens_in, ask.tokens_out) + _admit_rules(ask.rules)
    return Call(script("admit"), _all_keys(prefix, ask.key, ask.tenant), (numbers, ask.permit))


def admitted(reply: bytes) -> Answer:
    """What `admit` answered."""
    denial, scope, mode, retry_after, generation, is_probe, now, reason = _texts(reply, 8)
    return Answer(
        denial=cast(Denial, denial),
        scope=cast(Scope, scope),
        mode=cast(Mode, mode),
        reason=reason,
        retry_after_s=_maybe(retry_after),
        generation=int(generation),
        is_probe=is_probe == "1",
        at_s=float(now),
    )


def settle(prefix: str, settlement: Settlement) -> Call:
    """The question of `GateStore.settle`, budgets apart."""
    ask, answer, rules, seen = settlement.ask, settlement.answer, settlement.ask.rules, settlement.limits_seen
    numbers = _packed(
        -1 if answer is None else answer.generation,
        LEARNS[settlement.learn],
        int(settlement.seconds * 1_000_000),
        settlement.seconds >= rules.breaker.slow_call_s,
        settlement.jitter,
        settlement.overloaded,
        -1 if answer is None else answer.at_s,
        -1 if settlement.retry_after_s is None else settlement.retry_after_s,
        *off_by(settlement),
        -1 if answer is not None and not settlement.was_sent else 0,
        *(-1 if left is None else max(0.0, left) for left in seen.left()),
        *(reset_s or 0.0 for reset_s in seen.resets_s()),
    )
    keys = _all_keys(prefix, ask.key, ask.tenant)
    return Call(script("settle"), keys, (numbers + _settle_rules(rules), ask.permit))


def settled(reply: bytes) -> Settled:
    """What `settle` and `operate` answered."""
    old, new, retry_after, reason = _texts(reply, 4)
    return Settled(old=cast(Mode, old), new=cast(Mode, new), reason=reason, retry_after_s=_maybe(retry_after))


def off_by(settlement: Settlement) -> tuple[int, int]:
    """By how many tokens, sent and received, the reservation was too small."""
    if settlement.answer is None:
        return settlement.tokens_in, settlement.tokens_out
    return settlement.tokens_in - settlement.ask.tokens_in, settlement.tokens_out - settlement.ask.tokens_out


def operate(prefix: str, key: str, event: Operate, rules: KeyRules) -> Call:
    """The question of `GateStore.operate`."""
    for_s = event.for_s
    if event.mode == "forced-open" or (event.mode == "disabled" and for_s is None):
        for_s = FOREVER
    elif event.mode == "half-open":
        for_s = 0.0
    seconds = rules.breaker.open_s if for_s is None else for_s
    numbers = _packed(seconds, _ttl_s(rules))
    return Call(script("operate"), _keys_of(prefix, key)[:3], (numbers, event.mode, event.reason))


def stats(prefix: str, key: str, rules: KeyRules) -> Call:
    """The question of `GateStore.stats`."""
    tagged, _, probes, flying = _keys_of(prefix, key)
    retries = rules.retry_budget
    numbers = _packed(*_limits(rules.limits), retries.floor_per_s, retries.cap)
    return Call(script("stats"), (tagged, probes, flying), (numbers,))


def stats_of(key: str, rules: KeyRules, reply: bytes) -> KeyStats:
    """What `stats` answered."""
    mode, row, calls, failures, slow, micros, until, generation, rounds, *more = _texts(reply, 19)
    cut, not_before, now, retries, probes, flying, *left, reason = more
    count, state = int(calls), cast(Mode, mode)
    return KeyStats(
        name=key,
        state=state,
        failure_count=int(row),
        total_calls=count,
        failure_rate=int(failures) / count if count else 0.0,
        avg_latency_s=float(micros) / 1e6 / count if count else 0.0,
        retry_after_s=circuit_retry_after_s(state, float(until), float(now)),
        slow_rate=int(slow) / count if count else 0.0,
        reason=reason,
        generation=int(generation),
        rounds=int(rounds),
        probes=int(probes),
        in_flight=int(flying),
        concurrency=concurrency(Adapted(_maybe(cut)), rules.limits.concurrency),
        not_before_s=max(0.0, float(not_before) - float(now)),
        requests_left=_maybe(left[0]),
        input_tokens_left=_maybe(left[1]),
        output_tokens_left=_maybe(left[2]),
        retries_left=float(retries),
        shared=True,
    )


def spend(
    prefix: str,
    tenant: str,
    budgets: Sequence[Budget],
    *,
    how: str,
    tokens: int = 0,
    money: float = 0.0,
    meant: Sequence[Spent] | None = None,
) -> Call:
    """A question to purses.

    Args:
        how: "check", "force" or "read".
        meant: What a correction is for; a purse that has begun a new period since is left alone.
    """
    numbers: list[float] = [HOWS[how], tokens, money]
    for position, one in enumerate(budgets):
        numbers += [-1 if one.tokens is None else one.tokens, -1 if one.money is None else one.money]
        numbers += [one.period_s or 0, max(1, int(one.ttl_s)), -1 if meant is None else meant[position].period]
    tag = f"{prefix}:purse:{{{_safe(tenant)}}}"
    keys = tuple(f"{tag}:{_safe(one.level, but='')}:{_safe(one.name, but='')}" for one in budgets)
    return Call(script("spend"), keys, (_packed(*numbers),))


def spent(reply: bytes) -> tuple[Short | None, tuple[Spent, ...]]:
    """What the purses answered."""
    position, is_money, rest, *each = _doubles(len(reply) // 8).unpack(reply)
    purses = tuple(Spent(int(each[at]), int(each[at + 1]), each[at + 2]) for at in range(0, len(each), 3))
    return (Short(int(position) - 1, "money" if is_money else "tokens", rest) if position else None), purses


def _texts(reply: bytes, count: int) -> list[str]:
    return [part.decode("utf-8", "replace") for part in reply.split(SEPARATOR, count - 1)]


def _maybe(text: str) -> float | None:
    return float(text) if text else None
