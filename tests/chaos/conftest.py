"""Folders for the servers that chaos breaks, as integration tests make them."""

from tests.integration.conftest import run_folder

__all__ = ["run_folder"]
