"""`celery -A workers.agents.main worker`: settings in, one Celery app out."""

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_init, worker_ready

from shared.broker.app import make_app
from shared.broker.publisher import Publisher
from shared.contracts import QUEUES
from shared.db.carriage import onward
from shared.db.database import Database
from shared.db.pools import process_name
from shared.errors import FleetError
from shared.ledger.sealed_text import SealedText
from shared.ledger.vault import Vault
from shared.llm.config_file import Configured, strangers
from shared.llm.dialect_check import check_dialects
from shared.llm.guarded import GuardedChat
from shared.llm.plane import open_plane
from shared.llm.rules import bounds_runs
from shared.memory.cache import RedisCache, open_redis
from shared.memory.session import SessionMemory
from shared.memory.truth import PostgresTruth
from shared.resilience.fail_open import open_gate_store
from shared.resilience.knobs import StoreKnobs
from shared.retrieval.corpus.loading import ensure_corpus
from shared.retrieval.embedding import E5Embedding
from shared.retrieval.milvus import MilvusVectors
from shared.retrieval.retriever import Retriever
from shared.settings import Settings, load, load_llm, load_room
from shared.telemetry.logs import setup_logs
from shared.telemetry.notify import notify
from shared.telemetry.redaction import load_hooks
from workers.agents.agent import AGENTS
from workers.agents.hosting import WorkerHost
from workers.agents.hurry import Hurry
from workers.agents.knobs import WorkerKnobs
from workers.agents.panel import take_over_commands
from workers.agents.queue_watch import QueueWatch
from workers.agents.registration import load_agents, register
from workers.agents.run import Ports
from workers.agents.settling import settle_memory

log = structlog.get_logger()

CHORE_CONNECTIONS = 3
"""And as many more at need: heartbeat, polling, cancels, the shelf and the offer never wait for one another."""
BUILT_IN = ("workers.agents.chat", "workers.agents.tools")


def build() -> Celery:
    """Wire one worker's app; connections open when the worker starts.

    Raises: Misconfigured.
    """
    settings = load()
    knobs = load_room("worker", WorkerKnobs)
    agents = load_agents((*BUILT_IN, *settings.general.agent_modules))
    app = make_app("fleet", settings.broker, onward=onward)
    app.conf.update(
        worker_pool="workers.agents.pool:TaskPool",
        worker_consumer="workers.agents.consumer:FleetConsumer",
        worker_concurrency=knobs.concurrency,
    )
    app.fleet_prefetch = knobs.prefetch
    app.fleet_publisher = Publisher(settings.broker)
    configured = load_llm(settings.llm)
    app.fleet_host = _host(settings, knobs, agents, app, configured)
    app.amqp.queues.select([QUEUES[priority] for priority in knobs.served])
    register(app, agents, app.fleet_host)
    take_over_commands()
    _connect_signals(app, settings, configured)
    return app


def _host(settings: Settings, knobs: WorkerKnobs, agents: Any, app: Celery, configured: Configured) -> WorkerHost:
    database = Database(settings.db, application_name=process_name("fleet-worker"))
    redis, embedding = open_redis(settings.memory), E5Embedding()
    store = open_gate_store(StoreKnobs(redis_url=settings.memory.redis_url, **asdict(settings.resilience)))
    vault = Vault(settings.ledger.master_keys)
    plane = open_plane(configured, store=store, redis=redis, seal=SealedText(vault, kind="answer"))
    cache = RedisCache(redis, knobs=settings.memory)
    said = SealedText(vault, kind="message")
    is_sharded = len(settings.shards) > 1
    memory = SessionMemory(PostgresTruth(database), cache, knobs=settings.memory, seal=said, is_sharded=is_sharded)
    vectors = MilvusVectors(settings.vectors, dimensions=embedding.dimensions)
    retriever = Retriever(embedding=embedding, vectors=vectors)
    closing = AsyncExitStack()
    closing.callback(embedding.close)
    for close in (vectors.aclose, redis.aclose, store.aclose, plane.aclose, partial(plane.publish, redis)):
        closing.push_async_callback(close)  # the last one first
    asking = QueueWatch(settings.broker, app)
    return WorkerHost(
        database=database,
        chores=Database(
            replace(settings.db, pool_size=CHORE_CONNECTIONS),
            application_name=process_name("fleet-worker-chores"),
            beside=database,
        ),
        ledger=settings.ledger,
        knobs=knobs,
        ports=Ports(
            chat_for=partial(GuardedChat, plane),
            retriever=retriever,
            memory=memory,
            has_run_budgets=bounds_runs(configured.config),
            is_sharded=is_sharded,
            prompt_tokens=configured.config.widest_context,
        ),
        agents=agents,
        publish=app.fleet_publisher.publish,
        depth=asking.depth,
        sort=asking.sort,
        hurry=partial(Hurry, redis=redis),
        warm_up=lambda: ensure_corpus(retriever),
        close_ports=closing.aclose,
        beside=[partial(plane.keep_publishing, redis)],
    )


def _connect_signals(app: Celery, settings: Settings, configured: Configured) -> None:
    hooks = load_hooks(settings.log.redact)  # not in a signal: Celery swallows what its receivers raise

    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def own_logs(**_: Any) -> None:
        setup_logs(style=settings.log.style, level=settings.log.level, hooks=hooks)

    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def named(sender: Any, **_: Any) -> None:
        setup_logs(style=settings.log.style, level=settings.log.level, hooks=hooks)
        _check_models(configured)
        app.fleet_host.name = sender.hostname
        app.fleet_host.serve(app.amqp.queues.consume_from)

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def ready(**_: Any) -> None:
        settle_memory()
        notify(settings.notify_socket)


def _check_models(configured: Configured) -> None:
    """Say what is doubtful, and ask each endpoint whether it is what was declared; one that is down is no mistake."""
    for warning in configured.warnings:
        log.warning("llm.shared_fate", warning=warning, hint="put another provider, region and key behind it")
    for warning in strangers(configured.config, agents=AGENTS):
        log.warning("llm.agent_unknown", warning=warning)
    try:
        for warning in asyncio.run(check_dialects(configured)):
            log.warning("llm.endpoint_doubtful", warning=warning)
    except FleetError as error:
        sys.exit(f"fleet worker: {error.message}")


try:
    app = build()
except FleetError as error:
    sys.exit(f"fleet worker: {error.message}")
