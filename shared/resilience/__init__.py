"""Patterns for a world that fails: retry with backoff, a loop for callers
that may be interrupted. Sole home of tenacity and pybreaker.

It knows nothing of models, brokers or databases. Every room above may enter.
"""
