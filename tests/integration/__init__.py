"""Tests against real servers, started once per session by the project's own supervisor."""
