"""The rules of the house that no linter knows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("shared", "workers", "migrations", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
BANNED = {"utils", "helpers", "common", "base", "misc", "manager", "constants"}
LIBRARIES = {
    "celery",
    "kombu",
    "redis",
    "sqlalchemy",
    "alembic",
    "openai",
    "pymilvus",
    "tenacity",
    "structlog",
    "typer",
}
READS_ENVIRONMENT = {"shared/settings.py", "workers/ops/main.py"}
"""Settings reads it; the command line hands it on to the processes that it starts."""
# The registries' hosts, spelled so that this file does not name them itself.
REGISTRY_HOSTS = re.compile(r"pypi\.o" + r"rg|registry\.npm" + r"js|deb\.deb" + r"ian|files\.pythonh" + r"osted")
TEXTS = (".py", ".md", ".toml", ".txt", ".lock", ".json", ".yml", ".yaml", ".sh", ".ini", ".mako", "")


def sources() -> Iterator[Path]:
    """Every Python file of the project."""
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    """The path from the project's root."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", list(sources()), ids=name_of)
def test_a_file_is_short_named_for_what_it_is_and_opens_with_one_sentence(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert path.stem not in BANNED | LIBRARIES
    assert ast.get_docstring(tree), "opens with one sentence"
    assert not (path.with_suffix("").is_dir() and path.stem != "__init__"), "a module and a package of one name"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", [p for p in sources() if "tests" not in p.parts], ids=name_of)
def test_only_settings_reads_the_environment(path: Path) -> None:
    if name_of(path) not in READS_ENVIRONMENT:
        assert not re.search(r"\bos\.(environ|getenv)\b|\bfrom os import .*(environ|getenv)", path.read_text("utf-8"))


@pytest.mark.parametrize("path", [p for p in sources() if p.name != "__init__.py" or p.stat().st_size], ids=name_of)
def test_public_functions_and_classes_of_the_product_have_docstrings(path: Path) -> None:
    if name_of(path).startswith(("tests", "migrations")):
        return
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} needs a docstring"


def test_every_room_has_a_doorplate() -> None:
    for room in ("shared", "workers"):
        for folder in [ROOT / room, *(p for p in (ROOT / room).rglob("*") if p.is_dir())]:
            if any(folder.glob("*.py")):
                plate = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
                assert plate, f"{name_of(folder)} has no doorplate"


def test_no_import_contract_has_exceptions() -> None:
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text("utf-8")


def test_no_file_names_a_registry_host() -> None:
    for folder in (
        ROOT / "shared",
        ROOT / "workers",
        ROOT / "tests",
        ROOT / "deploy",
        ROOT / "migrations",
        ROOT / ".ci",
    ):
        for path in (p for p in folder.rglob("*") if p.is_file() and p.suffix in TEXTS):
            assert not REGISTRY_HOSTS.search(path.read_text("utf-8")), name_of(path)
    for path in (p for p in ROOT.iterdir() if p.is_file() and p.suffix in TEXTS):
        assert not REGISTRY_HOSTS.search(path.read_text("utf-8")), name_of(path)


def test_migrations_say_whether_they_run_before_or_after_the_code() -> None:
    for path in (ROOT / "migrations" / "versions").glob("*.py"):
        assert re.match(r"\d{4}_(pre|post)_", path.name), path.name
