"""Patterns for a world that fails: retry with backoff. Sole home of tenacity and pybreaker.

It knows nothing of models, brokers or databases. Every room above may enter.
"""
