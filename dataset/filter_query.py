"""The query language over a data set: tags and predicates joined by ``and``, ``or``, ``not`` and parentheses.

A query is parsed into a tree of the classes below; ``filter_rows`` says of which pictures it is true. The grammar, with
``not`` binding closest and ``or`` last::

    either    = both { "or" both }
    both      = single { "and" single }
    single    = "not" single | "(" either ")" | term
    term      = number compare value | "score:" tag compare value | "category:" word compare value
              | "is:" flag | ("folder:" | "name:" | "concept:" | "rating:") glob | tag
    value     = 12 | 0.5 | 1.5k | 2m | 512..1024 (with = and != only) | a tier (of ``tier``)

A tag without quotes runs to the next operator and may hold ``*`` and ``?``; in double quotes it is taken to the letter.
"""

import difflib
import re
from dataclasses import dataclass
from typing import NoReturn

from ..core.errors import InputError, nearest_names

NUMBERS = {
    "width": "px",
    "height": "px",
    "pixels": "width times height",
    "aspect": "width divided by height",
    "shorter": "shorter side in px",
    "longer": "longer side in px",
    "bytes": "size of the file",
    "tags": "how many tags the caption has",
    "repeats": "of its folder",
    "weight": "of its loss",
    "site_score": "of the site the picture comes from",
    "favourites": "on that site",
    "duplicates": "how many other pictures look the same",
    "tier": "upscaled, ok or ideal at the training size",
}
"""Words that stand before a comparison, with what they mean."""
FLAGS = {
    "reg": "a regularisation picture",
    "captioned": "it has at least one tag",
    "masked": "it has a mask",
    "cropped": "only a part of the file is used",
    "duplicate": "an earlier picture looks the same",
    "listed": "its name is in the list of names",
    "portrait": "higher than wide",
    "landscape": "wider than high",
    "square": "as high as wide",
}
"""Words after ``is:``."""
GLOBS = {
    "folder": "the folder it lies in",
    "name": "its file name",
    "concept": "text of its kohya folder",
    "rating": "of the site",
}
TIERS = ("upscaled", "ok", "ideal")
PREFIXES = (*GLOBS, "is", "score", "category")
COMPARISONS = ("<=", ">=", "!=", "==", "<", ">", "=")
MAX_CHARS = 20_000
MAX_DEPTH = 50

_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6}
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?|-?\.\d+)([km]?)\Z", re.IGNORECASE)
_SURE = 0.75
"""How alike a word before a colon must be to one of ours to be taken for a slip rather than for a tag."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """True where a caption has a tag of this name, or one that matches it where it is a glob."""

    text: str
    is_glob: bool
    column: int


@dataclass(frozen=True, kw_only=True)
class Number:
    """True where a number lies from ``low`` to ``high``; the ends count unless they are open.

    ``field`` is a key of :data:`NUMBERS`, ``score`` or ``category``; ``name`` the tag or the category of the last two.
    """

    field: str
    name: str
    low: float
    high: float
    low_open: bool
    high_open: bool
    column: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Glob:
    """True where a text of the picture (a key of :data:`GLOBS`) matches."""

    field: str
    pattern: str
    column: int


@dataclass(frozen=True, kw_only=True)
class Flag:
    """True where the picture is what a key of :data:`FLAGS` says."""

    name: str
    column: int


@dataclass(frozen=True, kw_only=True)
class Not:
    """True where its part is not."""

    part: "Query"


@dataclass(frozen=True, kw_only=True)
class Both:
    """True where all parts are."""

    parts: "tuple[Query, ...]"


@dataclass(frozen=True, kw_only=True)
class Either:
    """True where any part is."""

    parts: "tuple[Query, ...]"


Term = Tag | Number | Glob | Flag
Query = Term | Not | Both | Either


def parse_query(text: str) -> Query:
    """Reads a query.

    Raises:
        InputError: It is empty, too long or not one; the column (from 1) and the nearest word are named.
    """
    if len(text) > MAX_CHARS:
        raise InputError(f"the query has {len(text)} characters, allowed are {MAX_CHARS}; use a list of names instead")
    if not text.strip():
        raise InputError(
            "the query is empty; write tags and conditions, such as: 1girl and not sketch and width >= 512"
        )
    parser = _Parser(text)
    query = parser.either(0)
    if parser.token.kind == ")":
        parser.fail("')' has no '(' before it")
    if parser.token.kind != "end":
        parser.fail(
            f"'and' or 'or' is missing before {parser.shown()}; a tag that holds parentheses or such words goes in "
            "double quotes"
        )
    return query


def terms_of(query: Query) -> tuple[Term, ...]:
    """The tags and predicates of a query in the order they were written."""
    if isinstance(query, Not):
        return terms_of(query.part)
    if isinstance(query, (Both, Either)):
        return tuple(term for part in query.parts for term in terms_of(part))
    return (query,)


def shown(term: Term) -> str:
    """A term as a person would write it."""
    if isinstance(term, Number):
        return term.text
    if isinstance(term, Glob):
        return f"{term.field}:{term.pattern}"
    return f"is:{term.name}" if isinstance(term, Flag) else term.text


@dataclass(frozen=True)
class _Token:
    """``kind`` is end, word, quoted, a parenthesis, a comparison, or and / or / not."""

    kind: str
    text: str
    start: int
    end: int


_OPERATORS = {"and": "and", "&": "and", "&&": "and", "or": "or", "|": "or", "||": "or", "not": "not", "!": "not"}
_PIECE = re.compile(r'\s*(?:(<=|>=|!=|==|[<>=])|([()])|(&&|\|\||[&|!])|((?:\\[()]|[^\s()<>=!&|"\\,]|\\)+)|(")|(,)|$)')


class _Parser:
    """Recursive descent over the tokens; ``token`` is the next one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.token = self._read()

    def either(self, depth: int) -> Query:
        parts = [self._both(depth)]
        while self.token.kind == "or":
            self._advance()
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Either(parts=tuple(parts))

    def fail(self, reason: str, start: int | None = None) -> NoReturn:
        column = (self.token.start if start is None else start) + 1
        raise InputError(f"the query at column {column}: {reason}")

    def shown(self) -> str:
        return "the end" if self.token.kind == "end" else repr(self.token.text)

    def _both(self, depth: int) -> Query:
        parts = [self._single(depth)]
        while self.token.kind == "and":
            self._advance()
            parts.append(self._single(depth))
        return parts[0] if len(parts) == 1 else Both(parts=tuple(parts))

    def _single(self, depth: int) -> Query:
        if depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} parentheses and 'not' inside each other; write it flatter")
        if self.token.kind == "not":
            self._advance()
            return Not(part=self._single(depth + 1))
        if self.token.kind == "(":
            opened = self.token.start
            self._advance()
            inner = self.either(depth + 1)
            if self.token.kind != ")":
                if self.token.kind == "end":
                    self.fail("')' is missing for this '('", opened)
                self.fail(f"'and', 'or' or ')' is missing before {self.shown()}")
            self._advance()
            return inner
        return self._term()

    def _term(self) -> Query:
        token = self.token
        if token.kind == "quoted":
            self._advance()
            if self.token.kind in COMPARISONS:
                self.fail(f'a tag cannot be compared; for its score write score:"{token.text}" {self.token.text} 0.5')
            return Tag(text=token.text, is_glob=False, column=token.start + 1)
        if token.kind != "word":
            self.fail(f"a tag or a condition is missing before {self.shown()}")
        prefix, colon, rest = token.text.partition(":")
        if colon and prefix.lower() in PREFIXES:
            return self._prefixed(prefix.lower(), rest, token)
        words = self._words()
        if self.token.kind in COMPARISONS:
            return self._number(words, token)
        if colon and rest and (slip := difflib.get_close_matches(prefix.lower(), PREFIXES, 1, _SURE)):
            self.fail(
                f"{prefix + ':'!r} is not known; did you mean {slip[0] + ':'!r}? A tag goes in double quotes",
                token.start,
            )
        name = " ".join(words)
        return Tag(text=name, is_glob="*" in name or "?" in name, column=token.start + 1)

    def _prefixed(self, prefix: str, rest: str, token: _Token) -> Query:
        """A term behind one of :data:`PREFIXES`; its text is quoted, or runs to the next operator."""
        quoted = False
        if rest:
            words = [rest, *self._words()[1:]]
        else:
            self._advance()
            quoted = self.token.kind == "quoted" and self.token.start == token.end
            if quoted:
                words = [self.token.text]
                self._advance()
            else:
                words = self._words() if self.token.kind == "word" else []
        name = " ".join(words)
        if not name:
            self.fail(f"what follows {prefix + ':'!r} is missing", token.start)
        if prefix == "is":
            self._check_known("flag after 'is:'", name, FLAGS, token.start)
            return Flag(name=name.lower(), column=token.start + 1)
        if prefix in GLOBS:
            return Glob(field=prefix, pattern=name, column=token.start + 1)
        if self.token.kind not in COMPARISONS:
            self.fail(f"a comparison is missing after {prefix}:{name}, such as {prefix}:{name} >= 0.4", token.start)
        return self._compared(prefix, name, token)

    def _number(self, words: list[str], token: _Token) -> Query:
        name = " ".join(words)
        self._check_known("number", name, NUMBERS, token.start)
        return self._compared(name.lower(), "", token)

    def _compared(self, field: str, name: str, token: _Token) -> Query:
        sign = self.token.text
        self._advance()
        value = self.token
        if value.kind not in ("word", "quoted"):
            self.fail(f"a number is missing after {sign!r}")
        self._advance()
        low, high = self._range(field, value)
        text = self._text[token.start : value.end].strip()
        if sign in ("=", "==", "!="):
            exact = Number(
                field=field, name=name, low=low, high=high, low_open=False, high_open=False,
                column=token.start + 1, text=text,
            )  # fmt: skip
            return exact if sign != "!=" else Not(part=exact)
        if low != high:
            self.fail(f"a range goes with '=' and '!=' only, not with {sign!r}", value.start)
        is_low = sign in (">", ">=")
        return Number(
            field=field,
            name=name,
            low=low if is_low else float("-inf"),
            high=float("inf") if is_low else high,
            low_open=sign == ">",
            high_open=sign == "<",
            column=token.start + 1,
            text=text,
        )

    def _range(self, field: str, value: _Token) -> tuple[float, float]:
        if field == "tier":
            self._check_known("tier", value.text, TIERS, value.start)
            place = float(TIERS.index(value.text.lower()))
            return place, place
        parts = value.text.split("..")
        numbers = [_NUMBER.match(part) for part in parts]
        if len(parts) > 2 or not all(numbers):
            self.fail(f"{value.text!r} is not a number; write 512, 0.5, 1.5k, 2m or 512..1024", value.start)
        ends = [float(found[1]) * _FACTORS[found[2].lower()] for found in numbers if found]
        if ends[0] > ends[-1]:
            self.fail(f"the range {value.text!r} ends before it begins; write {parts[1]}..{parts[0]}", value.start)
        return ends[0], ends[-1]

    def _check_known(self, kind: str, name: str, allowed: "dict[str, str] | tuple[str, ...]", start: int) -> None:
        if name.lower() in allowed:
            return
        near = nearest_names(name, allowed)
        hint = f"; did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
        self.fail(f"unknown {kind} {name!r}{hint} (allowed: {', '.join(allowed)})", start)

    def _words(self) -> list[str]:
        """This word and those that follow it without an operator."""
        words = []
        while self.token.kind == "word":
            words.append(self.token.text)
            self._advance()
        return words

    def _advance(self) -> None:
        self.token = self._read()

    def _read(self) -> _Token:
        found = _PIECE.match(self._text, self._at)
        if found is None:  # every character begins one of the pieces; kept so that a slip in them is no endless loop
            raise InputError(f"the query at column {self._at + 1}: {self._text[self._at]!r} cannot be read")
        self._at = found.end()
        comparison, bracket, operator, word, quote, comma = found.groups()
        piece = next((text for text in found.groups() if text), "")
        start = found.end() - len(piece)
        if comma:
            raise InputError(f"the query at column {start + 1}: ',' joins nothing; write 'and' or 'or'")
        if quote:
            return self._quoted(start)
        if word:
            return _Token(_OPERATORS.get(word.lower(), "word"), word, start, found.end())
        kind = comparison or bracket or (_OPERATORS[operator] if operator else "end")
        return _Token(kind, piece, start, found.end())

    def _quoted(self, start: int) -> _Token:
        end = self._text.find('"', start + 1)
        if end < 0:
            raise InputError(f"the query at column {start + 1}: the closing '\"' is missing")
        self._at = end + 1
        inner = self._text[start + 1 : end]
        if not inner.strip():
            raise InputError(f"the query at column {start + 1}: there is nothing between the quotes; write a tag")
        return _Token("quoted", inner, start, end + 1)
