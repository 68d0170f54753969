"""Tools that come with the fleet: small, safe, and an example of how one is written."""

import ast
import math
import operator
from collections.abc import Callable
from datetime import UTC, datetime

from shared.errors import BadInput
from workers.agents.agent import tool

Number = int | float

BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


@tool("calculator")
def calculator(expression: str) -> Number:
    """Compute an arithmetic expression with + - * / // % and parentheses, such as "12 * (3 + 4)"."""
    if len(expression) > 200:
        raise BadInput("expression: at most 200 characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise BadInput(f"expression {expression!r}: {error}") from None
    if not math.isfinite(value):
        raise BadInput(f"expression {expression!r}: the result is too large")
    return value


@tool("clock")
def clock() -> str:
    """Tell the current date and time, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    raise BadInput("expression: only numbers, + - * / // % and parentheses")
