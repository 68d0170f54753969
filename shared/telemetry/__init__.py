"""Logs in one shape, without secrets, and the word "ready" to whoever started the process.

It never decides anything and never reads the environment itself. Every room may enter.
"""
