"""A tool in Python: the model writes ``<calc>2*(3+4)</calc>`` and reads ``<result>14</result>``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from miles_core.rollout.conversation import Conversation
from miles_core.samples import Sample

ROUNDS = 8
LONGEST = 200
"""Characters of an expression."""
END = "</calc>"
_CALL = re.compile(r"<calc>((?:(?!<calc>).)*)</calc>\s*$", re.DOTALL)
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


async def calculator(sample: Sample, generate: Conversation) -> None:
    """``--custom-generate-function-path calculator``: at most :data:`ROUNDS` calls, then a last turn without the tool.

    ``metadata["round_number"]`` counts the calls.
    """
    while True:
        rounds = sample.metadata.setdefault("round_number", 0)
        turn = await generate(stop=[END] if rounds < ROUNDS else None)
        # Of the whole response, and not of this turn: one that was cut off goes on in the next.
        call = _CALL.search(sample.response)
        if turn.reason != "stop" or call is None or rounds >= ROUNDS:
            return
        if not generate.observe(f"<result>{calculate(call[1])}</result>"):
            return
        sample.metadata["round_number"] = rounds + 1


calculator.resumes = True  # type: ignore[attr-defined]


def calculate(expression: str) -> str:
    """The value of an expression of numbers, ``+ - * / // %`` and parentheses, or what is wrong with it."""
    if len(expression) > LONGEST:
        return "error: too long"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return "error: no expression"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return -_value(operand) if isinstance(sign, ast.USub) else _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            found: int | float = _BINARY[type(op)](_value(left), _value(right))
            return found
    raise ValueError("no arithmetic")
