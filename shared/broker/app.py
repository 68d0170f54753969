"""The Celery app of a worker: stock Celery, with every setting that could lose or repeat work pinned."""

from collections.abc import Callable, MutableMapping
from typing import Any

from celery import Celery
from celery.signals import before_task_publish

from shared.broker.connection import transport_options
from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import task_queues
from shared.contracts import CAUSAL_HEADER, QUEUE, TASK_PREFIX

Onward = Callable[[object], str | None]
"""What the header `wt` of a message is to be, from what it is (None: it has none)."""


def celery_settings(knobs: BrokerKnobs) -> dict[str, Any]:
    """Settings by Celery's own names.

    A task is acknowledged by the pool once its claim is committed (`task_acks_late=False` is Celery's word for
    "acknowledge when the pool accepts it"), never after its model calls; there is no result backend, no ETA and no
    Celery retry: state, waiting and results live in the ledger.
    """
    return {
        "broker_url": knobs.url,
        "broker_transport_options": transport_options(knobs),
        "broker_heartbeat": knobs.heartbeat_s,
        "broker_connection_timeout": knobs.connect_timeout_s,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_pool_limit": 10,  # Flower asks with several threads at once; with 4 they wait for one another
        "broker_pool_acquire_timeout": 5,  # seconds; by default it waits for a connection for ever
        "task_queues": task_queues(knobs),
        "task_default_queue": QUEUE,
        "task_default_queue_type": "quorum",
        "task_default_exchange": "",
        "task_default_routing_key": QUEUE,
        "task_create_missing_queues": False,
        "task_acks_late": False,
        "task_ignore_result": True,
        "result_backend": None,
        "task_store_errors_even_if_ignored": False,
        "task_publish_retry": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_send_sent_event": False,
        "worker_send_task_events": True,
        "worker_enable_remote_control": True,
        "worker_disable_rate_limits": True,
        "worker_detect_quorum_queues": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def make_app(name: str, knobs: BrokerKnobs, *, onward: Onward | None = None) -> Celery:
    """A Celery app that speaks to the fleet's broker.

    Args:
        onward: `shared.db.carriage.onward`, to have tasks see what this process has written; see `carry_tokens`.
    """
    app = Celery(name)
    app.conf.update(celery_settings(knobs))
    if onward is not None:
        carry_tokens(onward)
    return app


def carry_tokens(onward: Onward) -> None:
    """Send a causal token with every agent's task that this process publishes through Celery, by whichever app.

    Also with a task that is sent again (`retry`, a forward): Celery keeps its headers, and the larger token stays.
    """

    def carry(sender: str = "", headers: MutableMapping[str, Any] | None = None, **_: Any) -> None:
        if headers is None or not sender.startswith(TASK_PREFIX):
            return
        token = onward(headers.get(CAUSAL_HEADER))
        if token is not None:
            headers[CAUSAL_HEADER] = token

    before_task_publish.connect(carry, weak=False, dispatch_uid="fleet-causal-tokens")
