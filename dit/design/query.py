"""What `--where` says: which rows of a table, or cells of a plan, are meant. A small language, read and evaluated here alone.

    block == 'adaln_zero' and patch_size == 2        1e6 < train_gflops <= 1e9 or size in ['S', 'B']        not (seed == 0)

Names are columns (`in backticks` where they are no plain words); values are numbers, 'text', True, False and None. There are comparisons
(also in chains), `in` and `not in` a list, and, or, not (also written &, |, ~) and arithmetic of numbers, and nothing else: no calls, no
attributes. A missing value satisfies no comparison but !=, and not that in a column of whole numbers; `== None` finds what is missing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dit.design.parts import nearest
from dit.design.rows import Row
from dit.errors import UserError

MAX_LENGTH = 10_000
"""Characters of an expression."""
MAX_WORDS = 500
"""Names and signs in it; of the values in its lists only the length is bounded."""
MAX_DEPTH = 20
"""Brackets within one another."""
MAX_BITS = 1_000
"""Of a whole number that is calculated."""
_TOKENS = re.compile(
    r"""\s*(?:(?P<number>(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?+(?![\w.]))
    |(?P<text>'(?:[^'\\\n]|\\['"\\])*'|"(?:[^"\\\n]|\\['"\\])*")
    |(?P<quoted>`[^`\n]+`)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>==|!=|<=|>=|//|[<>&|~()\[\],+\-*/%]))""",
    re.VERBOSE,
)
_SIGNS = ("==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "//", "%")
_NAMES = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod")
_DO = {sign: getattr(operator, name) for sign, name in zip(_SIGNS, _NAMES)}
_LITERALS = {"True": True, "False": False, "None": None}
_WORDS = {"and": "and", "&": "and", "or": "or", "|": "or", "not": "not", "~": "not", "in": "in"}
_ALLOWED = "comparisons, in [...], and, or, not and arithmetic are allowed"
_HINTS = {"is": "use == or !=", **{word.upper(): f"did you mean {word!r}?" for word in ("and", "or", "not", "in")}}
_UNKNOWN = object()
"""A missing whole number, and what is said of it: neither true nor false."""

Value = Callable[[int], Any]
"""An expression's value at a row, by the row's place."""


class _Term(NamedTuple):
    """A parsed expression: its value at a row, its place, and whether it is a truth ("bool"), a list, None or any value."""

    value: Value
    at: int
    kind: str = "value"
    items: tuple[Any, ...] = ()


class _Reader:
    """Recursive descent over the tokens; `values` gives a column's, missing ones None or NaN."""

    def __init__(self, expression: str, columns: Sequence[str], values: Callable[[str], Sequence[Any]]):
        self._expression, self._columns, self._values = expression, columns, values
        self._used: dict[str, Sequence[Any]] = {}
        self._parsed = False
        if len(expression) > MAX_LENGTH:
            raise self.trouble(f"expected at most {MAX_LENGTH:,} characters", MAX_LENGTH)
        self._tokens: list[tuple[str, str, int]] = []
        self._depth = self._next = words = at = 0
        while expression[at:].strip():
            found = _TOKENS.match(expression, at)
            if found is None:
                raise self._strange(at + len(expression[at:]) - len(expression[at:].lstrip()))
            kind = found.lastgroup or ""
            self._tokens.append((kind, _WORDS.get(found[kind], found[kind]), found.start(kind)))
            at = found.end()
            words += kind not in ("number", "text") and found[kind] != ","
            if words > MAX_WORDS:
                raise self.trouble(f"expected at most {MAX_WORDS} names and signs", at)
        self._tokens.append(("end", "", len(expression)))

    def trouble(self, reason: str, at: int) -> UserError:
        """The error to raise: the expression, the place in it, what is wrong, and the columns there are."""
        shown = self._expression if len(self._expression) <= 200 else self._expression[:200] + "..."
        return UserError(
            f"--where {shown!r} {'cannot be applied' if self._parsed else 'does not parse'} at character {at + 1}: {reason}; "
            f"expected the columns {', '.join(self._columns)}"
        )

    def _strange(self, at: int) -> UserError:
        letter = self._expression[at]
        advice = {
            "=": "use == to compare",
            "!": "use != or not",
            ".": f"attributes and calls are not part of this language: {_ALLOWED}",
            **dict.fromkeys("'\"`", "it has no end, or an escape other than of a quote and \\"),
        }.get(letter, "this is no number" if letter.isdigit() else _ALLOWED)
        return self.trouble(f"{letter!r} does not belong here ({advice})", at)

    def whole(self) -> _Term:
        """The whole expression, a truth of each row."""
        term = self._either()
        if self._kind != "end":
            raise self._unexpected("expected the end, `and` or `or`")
        if not self._used:
            raise self.trouble("it looks at no column", term.at)
        term, self._parsed = self._truth(term), True
        return term

    @property
    def _kind(self) -> str:
        return self._tokens[self._next][0]

    def _take(self, *words: str) -> str:
        kind, text, _ = self._tokens[self._next]
        if kind in ("word", "sign") and text in words:
            self._next += 1
            return text
        return ""

    @property
    def _at(self) -> int:
        return self._tokens[self._next][2]

    def _unexpected(self, wanted: str) -> UserError:
        kind, text, at = self._tokens[self._next]
        if kind == "end":
            return self.trouble(f"it ends too early ({wanted})", at)
        if text == "(":
            return self.trouble(f"a call is not part of this language: {_ALLOWED}", at)
        if text == "[":
            return self.trouble(f"a list stands only after in, == and !=: {_ALLOWED}", at)
        return self.trouble(f"{text[:60]!r} does not belong here ({_HINTS.get(text, wanted)})", at)

    def _truth(self, term: _Term) -> _Term:
        if term.kind not in ("bool", "column"):
            raise self.trouble("this is not true or false: compare it with something", term.at)
        if term.kind == "bool":
            return term

        def value(row: int) -> Any:
            found = term.value(row)
            if not isinstance(found, bool) and not _gone(found):
                raise self.trouble("this is not true or false: compare it with something", term.at)
            return found if isinstance(found, bool) else False

        return _Term(value, term.at, "bool")

    def _either(self) -> _Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.trouble(f"more than {MAX_DEPTH} brackets within one another", self._at)
        terms = [self._both()]
        while self._take("or"):
            terms.append(self._both())
        self._depth -= 1
        return self._joined(terms, True)

    def _both(self) -> _Term:
        terms = [self._negated()]
        while self._take("and"):
            terms.append(self._negated())
        return self._joined(terms, False)

    def _joined(self, terms: list[_Term], decides: bool) -> _Term:
        """`and` decides at the first False, `or` at the first True; every term is looked at, so that errors depend on no row's order."""
        if len(terms) == 1:
            return terms[0]
        values = [self._truth(term).value for term in terms]

        def value(row: int) -> Any:
            found = [one(row) for one in values]
            if decides in found:
                return decides
            return _UNKNOWN if _UNKNOWN in found else not decides

        return _Term(value, terms[0].at, "bool")

    def _negated(self) -> _Term:
        at, times = self._at, 0
        while self._take("not"):
            times += 1
        term = self._comparison()
        if not times:
            return term
        inner = self._truth(term).value
        return _Term(lambda row: found if (found := inner(row)) is _UNKNOWN else found != bool(times % 2), at, "bool")

    def _comparison(self) -> _Term:
        left = self._sum()
        links = []
        while True:
            at = self._at
            sign = self._take(*_SIGNS[:6], "in") or ("not in" if self._take("not") else "")
            if sign == "not in" and not self._take("in"):
                raise self._unexpected("expected `in` after `not`")
            if not sign:
                break
            is_list = self._tokens[self._next][1] == "[" or "in" in sign
            right = self._list() if is_list and sign in ("in", "not in", "==", "!=") else self._sum()
            links.append(self._link(left, sign, right, at))
            left = right
        return self._joined([_Term(link, left.at, "bool") for link in links], False) if links else left

    def _link(self, left: _Term, sign: str, right: _Term, at: int) -> Value:
        if left.kind == "list":
            raise self.trouble("a list stands only on the right of a comparison", left.at)
        if right.kind == "list":
            wanted = sign in ("in", "==")

            def among(row: int) -> bool:
                value = left.value(row)
                return any([self._compare("==", value, one, at) is True for one in right.items]) == wanted

            return among
        if "none" in (left.kind, right.kind):
            if sign not in ("==", "!="):
                raise self.trouble("None is neither more nor less than anything: use == None or != None", at)
            return lambda row: (_gone(left.value(row)) and _gone(right.value(row))) == (sign == "==")
        return lambda row: self._compare(sign, left.value(row), right.value(row), at)

    def _compare(self, sign: str, left: Any, right: Any, at: int) -> Any:
        if left is _UNKNOWN or right is _UNKNOWN:
            return _UNKNOWN
        if _gone(left) or _gone(right):
            return sign == "!="
        if isinstance(left, str) != isinstance(right, str):
            shown = f"{left!r:.60} with {right!r:.60}"
            raise self.trouble(
                f"text is compared with a number ({shown}): compare columns with values of their kind", at
            )
        try:
            return bool(_DO[sign](left, right))
        except TypeError as error:
            raise self.trouble(f"{sign} cannot be applied ({error})", at) from error

    def _list(self) -> _Term:
        at = self._at
        closing = {"[": "]", "(": ")"}.get(self._take("[", "("))
        if closing is None:
            raise self._unexpected("expected a list, like ['S', 'B']")
        items: list[Any] = []
        while not self._take(closing):
            minus = bool(self._take("-"))
            kind = self._kind
            term = self._atom() if kind in ("number", "text") or self._tokens[self._next][1] in _LITERALS else None
            if term is None or term.kind == "column" or (minus and kind != "number"):
                raise self._unexpected("expected numbers or texts in the list")
            items.append(-term.value(0) if minus else term.value(0))
            if not self._take(",") and self._tokens[self._next][1] != closing:
                raise self._unexpected(f"expected a comma or {closing!r}")
        return _Term(lambda _: None, at, "list", tuple(items))

    def _sum(self) -> _Term:
        return self._calculated(self._product, "+", "-")

    def _product(self) -> _Term:
        return self._calculated(self._signed, "*", "/", "//", "%")

    def _calculated(self, part: Callable[[], _Term], *signs: str) -> _Term:
        first, rest = part(), []
        while sign := self._take(*signs):
            rest.append((sign, part()))
        if not rest:
            return first

        def value(row: int) -> Any:
            found = self._number(first.value(row), first.at)
            for sign, term in rest:
                found = self._apply(sign, found, self._number(term.value(row), term.at), term.at)
            return found

        return _Term(value, first.at)

    def _number(self, value: Any, at: int) -> Any:
        if not _gone(value) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.trouble(f"only numbers are calculated with, not {value!r:.60}", at)
        return value

    def _apply(self, sign: str, left: Any, right: Any, at: int) -> Any:
        if left is _UNKNOWN or right is _UNKNOWN:
            return _UNKNOWN
        if _gone(left) or _gone(right):
            return None
        if sign in ("/", "//", "%") and right == 0:
            return math.nan if sign == "%" or left == 0 else math.copysign(math.inf, left)
        try:
            found = _DO[sign](left, right)
        except ArithmeticError as error:
            raise self.trouble(f"{sign} cannot be applied ({error})", at) from error
        if isinstance(found, int) and found.bit_length() > MAX_BITS:
            raise self.trouble("this number grows too large", at)
        return found

    def _signed(self) -> _Term:
        at, minus = self._at, False
        while sign := self._take("+", "-"):
            minus = minus != (sign == "-")
        term = self._atom()
        if at == term.at:
            return term
        number = lambda row: self._number(term.value(row), term.at)  # noqa: E731
        return _Term(lambda row: value if _gone(value := number(row)) else -value if minus else value, at)

    def _atom(self) -> _Term:
        kind, text, at = self._tokens[self._next]
        if self._take("("):
            term = self._either()
            if not self._take(")"):
                raise self._unexpected("expected ')'")
            return _Term(term.value, at, term.kind, term.items)
        if kind == "quoted" or (kind == "word" and text not in (*_LITERALS, *_WORDS)):
            self._next += 1
            return self._column(text.strip("`"), at)
        if kind not in ("number", "text") and text not in _LITERALS:
            raise self._unexpected("expected a column, a number or a 'text'")
        self._next += 1
        if kind == "text":
            value: Any = re.sub(r"\\(.)", r"\1", text[1:-1])
        elif kind == "number":
            value = int(text) if text.isdigit() and len(text) < 300 else float(text)
        else:
            value = _LITERALS[text]
        return _Term(lambda _: value, at, "none" if value is None else "value")

    def _column(self, name: str, at: int) -> _Term:
        if name not in self._columns:
            if self._tokens[self._next][1] == "(":
                raise self._unexpected("")
            raise self.trouble(f"name {name[:60]!r} is not defined{nearest(name, self._columns)}", at)
        if name not in self._used:
            values = self._values(name)
            gaps = any(map(_gone, values))
            missing = _UNKNOWN if gaps and all(type(one) is int or _gone(one) for one in values) else None
            self._used[name] = [missing if _gone(one) else one for one in values] if gaps else values
        return _Term(self._used[name].__getitem__, at, "column")


def _gone(value: Any) -> bool:
    return value is None or value is _UNKNOWN or (isinstance(value, float) and value != value)


def mask(expression: str, columns: Sequence[str], values: Callable[[str], Sequence[Any]], rows: int) -> list[bool]:
    """Whether the expression holds, for each of so many rows; `values` gives those of a column (a missing one is None or NaN).

    Raises:
        UserError: naming the place, if it is none of this language, names an unknown column or compares text with numbers.
    """
    term = _Reader(expression, columns, values).whole()
    return [term.value(row) is True for row in range(rows)]


def filter_rows(table: Any, expression: str) -> Any:
    """The rows of a pandas frame for which the expression holds.

    Raises:
        UserError: as `mask` does.
    """

    def values(name: str) -> list[Any]:
        return [None if gone else one for one, gone in zip(table[name].tolist(), table[name].isna())]

    return table[mask(expression, list(table.columns), values, len(table))]


def select(rows: list[Row], where: str) -> list[Row]:
    """The rows of a plan for which the expression holds, in their order.

    Raises:
        UserError: as `mask` does.
    """
    if not rows:
        return []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    holds = mask(where, columns, lambda name: [row.get(name) for row in rows], len(rows))
    return [row for row, held in zip(rows, holds) if held]


def sort(table: Any, column: str, descending: bool = False) -> Any:
    """Rows of a pandas frame by a column's values, gaps last, equal values in their present order.

    Raises:
        UserError: for an unknown column.
    """
    require_columns(table, [column])
    return table.sort_values(column, ascending=not descending, kind="stable", na_position="last")


def require_columns(table: Any, columns: list[str]) -> None:
    """Check that all columns exist.

    Raises:
        UserError: naming the first unknown one and the columns there are.
    """
    for name in columns:
        if name not in table.columns:
            raise UserError(f"unknown column '{name}': expected one of {', '.join(table.columns)}")
