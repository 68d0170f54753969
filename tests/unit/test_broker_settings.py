"""What is declared on the broker and pinned in Celery: nothing here may lose or repeat work."""

import socket
from pathlib import Path

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from celery.app.defaults import DEFAULTS

from shared.broker.app import celery_settings, make_app
from shared.broker.connection import safe_url, transport_options
from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import dead_queue, mismatch, task_queue
from shared.contracts import DEAD_QUEUE, QUEUE, QUEUES

KNOBS = BrokerKnobs(delivery_limit=7, socket_timeout_s=3, connect_timeout_s=1.5, heartbeat_s=4)
VALKEY = BrokerKnobs(url="redis://127.0.0.1/0", socket_timeout_s=3, connect_timeout_s=1.5)


@pytest.fixture
def app() -> Celery:
    return make_app("test", KNOBS)


def test_the_task_queue_is_durable_quorum_bounded_and_dead_letters_without_loss() -> None:
    queue = task_queue(KNOBS)
    assert (queue.name, queue.routing_key, queue.exchange.name, queue.durable) == (QUEUE, QUEUE, "", True)
    assert (queue.auto_delete, queue.exclusive) == (False, False)
    assert queue.queue_arguments == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 7,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD_QUEUE,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_the_dead_letter_queue_is_durable_quorum_and_keeps_everything() -> None:
    queue = dead_queue()
    assert (queue.name, queue.routing_key, queue.exchange.name, queue.durable) == (DEAD_QUEUE, DEAD_QUEUE, "", True)
    assert queue.queue_arguments == {"x-queue-type": "quorum"}


@pytest.mark.parametrize(
    ("setting", "pinned"),
    [
        ("result_backend", None),
        ("task_ignore_result", True),
        ("task_acks_late", False),
        ("task_publish_retry", False),
        ("task_serializer", "json"),
        ("accept_content", ["json"]),
        ("task_create_missing_queues", False),
        ("task_default_queue", QUEUE),
        ("task_default_queue_type", "quorum"),
        ("worker_prefetch_multiplier", 1),
        ("worker_detect_quorum_queues", True),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        ("worker_enable_remote_control", True),
        ("worker_hijack_root_logger", False),
        ("worker_redirect_stdouts", False),
        ("worker_disable_rate_limits", True),
        ("worker_send_task_events", True),
        ("task_send_sent_event", False),
        ("task_store_errors_even_if_ignored", False),
        ("task_default_exchange", ""),
        ("task_default_routing_key", QUEUE),
        ("broker_channel_error_retry", True),
        ("broker_pool_limit", 10),
        ("broker_pool_acquire_timeout", 5),
        ("broker_connection_max_retries", None),
        ("broker_connection_retry_on_startup", True),
        ("broker_heartbeat", 4),
        ("broker_connection_timeout", 1.5),
    ],
)
def test_celery_is_pinned(app: Celery, setting: str, pinned: object) -> None:
    assert getattr(app.conf, setting) == pinned


def test_every_setting_is_pinned_in_a_test() -> None:
    seen = Path(__file__).read_text()
    unpinned = {name for name in celery_settings(KNOBS) if f'("{name}"' not in seen}
    assert unpinned == {"broker_url", "broker_transport_options", "task_queues"}, "tested below, by what they mean"


def test_celery_knows_every_setting_by_this_name() -> None:
    assert set(celery_settings(KNOBS)) - set(DEFAULTS) == set()


def test_the_worker_consumes_a_queue_for_each_priority(app: Celery) -> None:
    assert [queue.name for queue in app.conf.task_queues] == list(QUEUES.values())


def test_results_go_nowhere(app: Celery) -> None:
    assert app.backend.as_uri() == "disabled://"


def test_rabbitmq_confirms_and_no_wait_on_it_is_endless() -> None:
    options = transport_options(KNOBS)
    assert options["confirm_publish"] is True
    assert (options["read_timeout"], options["write_timeout"]) == (3, 3)
    assert options["socket_settings"][socket.TCP_USER_TIMEOUT] == 20_000


def test_no_wait_on_valkey_is_endless() -> None:
    options = transport_options(VALKEY)
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (3, 1.5)


def test_an_address_is_logged_without_its_password() -> None:
    shown = safe_url("amqp://user:secret@h:5672//")
    assert "secret" not in shown
    assert "h:5672" in shown


def test_a_queue_of_other_arguments_is_told_with_the_remedy_and_nothing_else_is() -> None:
    refused = PreconditionFailed(
        "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'agent.tasks' in vhost '/': "
        "received '7' but current is '20'"
    )
    assert mismatch(refused) == (
        "queue 'agent.tasks' exists on the broker with another x-delivery-limit (received '7' but current is '20'): "
        "delete it once nothing is in it (rabbitmqctl delete_queue agent.tasks), or set FLEET_BROKER_DELIVERY_LIMIT "
        "to what it was declared with"
    )
    assert mismatch(PreconditionFailed("PRECONDITION_FAILED - unknown delivery tag 1")) is None
