"""Every command explains itself, and every option of it."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from workers.ops import main


def commands(group: Any = None, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The command line's own, with the words that lead there."""
    group = group or typer.main.get_command(main.app)
    yield words, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *words, name)


ALL = dict(commands())


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_is_there_and_says_what_each_option_means(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fleet", *words, "--help"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0
    assert "Usage: " in capsys.readouterr().out
    assert ALL[words].help, "says what it does"
    silent = [one.name for one in ALL[words].params if one.param_type_name == "option" and not one.help]
    assert silent == []


def test_the_command_line_is_whole() -> None:
    assert {("up",), ("status",), ("down",), ("demo",), ("submit",), ("result",), ("tasks",)} <= set(ALL)
