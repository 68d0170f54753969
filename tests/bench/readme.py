"""The table of measured figures in the README, between two markers, written anew by every full run."""

from collections.abc import Sequence

from tests.bench.figures import Figure, rounded

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
HEAD = ("| what | measured | goal | peer | ratio |", "|---|---|---|---|---|")


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown; a goal that is not met says so."""
    return "\n".join([*HEAD, *(_row(one) for one in figures)])


def rewritten(readme: str, figures: Sequence[Figure]) -> str | None:
    """The README with a new table; None when it has no place for one."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        return None
    return f"{before}{START}\n{table(figures)}\n{END}{after}"


def _row(one: Figure) -> str:
    sign = "≤" if one.better == "lower" else "≥"
    goal = one.goal_words or f"{sign} {rounded(one.goal):g} {one.unit}"
    peer = f"{one.peer}: {rounded(one.peer_value):g} {one.unit}" if one.peer and one.peer_value is not None else "–"
    ratio = f"{rounded(one.ratio):g}" if one.ratio is not None else "–"
    met = "met" if one.is_met else "**not met**"
    return f"| {one.what} (`{one.name}`) | {rounded(one.value):g} {one.unit} | {goal}: {met} | {peer} | {ratio} |"
