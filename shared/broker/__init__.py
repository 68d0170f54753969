"""The way to RabbitMQ: what is declared there, the Celery app's settings, and a publish that is confirmed or fails.

Sole home of kombu. It never decides whether a task is accepted (that is `ledger`) and never keeps work: the queue is
a hint, the ledger is the truth. `client`, and the mains of workers, may enter.
"""
