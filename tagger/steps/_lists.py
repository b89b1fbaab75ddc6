"""Reading what people type into a step: lists of tags, pairs, groups, classes of tags."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import FormatError, InputError
from ...dataset.normal import normal

MAX_ENTRIES = 500_000
MAX_TAG_CHARS = 500
ARROW = "->"
_HEADER_FROM = ("antecedent_name", "antecedent", "alias", "from", "old", "tag", "source")
_HEADER_TO = ("consequent_name", "consequent", "to", "new", "target", "name", "replacement")
_DEAD = {"deleted", "retired", "rejected", "pending"}
"""States of site aliases and implications that do not hold."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two tags of a list: the first stands for the second, or implies it.

    Attributes:
        source: The first tag as written.
        target: The second tag as written.
        where: Its place, for messages.
        typed: False when it came from a file; long files hold much that a data set does not.
    """

    source: str
    target: str
    where: str
    typed: bool = True


def content_lines(text: str) -> list[tuple[int, str]]:
    """Lines with their number (from 1), without blank ones and those that begin with ``#``.

    Raises:
        InputError: There are more than 500,000.
    """
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.replace("\ufeff", "").splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(lines) > MAX_ENTRIES:
        raise InputError(f"the list has {len(lines)} lines, allowed are {MAX_ENTRIES}; split it")
    return lines


def tag_list(text: str, *, what: str) -> tuple[str, ...]:
    """Tags separated by commas or line ends, each once (compared in normal form), in order.

    Raises:
        InputError: A tag is longer than 500 characters, or there are too many.
    """
    found: dict[str, str] = {}
    for number, line in content_lines(text):
        for part in line.split(","):
            tag = part.strip()
            if tag:
                found.setdefault(normal(checked_tag(tag, f"{what}, line {number}")), tag)
    if len(found) > MAX_ENTRIES:
        raise InputError(f"{what} has {len(found)} tags, allowed are {MAX_ENTRIES}; split it")
    return tuple(found.values())


def checked_tag(tag: str, where: str) -> str:
    """The tag with single blanks.

    Raises:
        InputError: It is empty, too long, or holds a control character.
    """
    tag = " ".join(tag.split())
    if not tag:
        raise InputError(f"{where}: a tag is empty; write one or take the line out")
    if len(tag) > MAX_TAG_CHARS:
        raise InputError(f"{where}: a tag has {len(tag)} characters, allowed are {MAX_TAG_CHARS}; is this a caption?")
    if any(ord(char) < 32 or ord(char) == 127 for char in tag):
        raise InputError(f"{where}: the tag {tag[:40]!r} holds a control character; type it anew")
    return tag


def pairs(text: str, *, what: str, typed: bool = True) -> list[Pair]:
    """Pairs of tags: ``a -> b``, several to a line when separated by commas, or CSV with two columns.

    The CSV may have a header; the columns of danbooru's and e621's own lists are known, and entries that are no
    longer in force are left out.

    Raises:
        FormatError: A line is neither; its number is named.
    """
    found: list[Pair] = []
    columns: tuple[int, int, int | None] | None = None
    for number, line in content_lines(text):
        where = f"{what}, line {number}"
        if ARROW in line:
            found += [_arrow_pair(part, where, typed) for part in line.split(",") if part.strip()]
            continue
        cells = _csv_cells(line, where)
        if columns is None:
            columns = _header(cells)
            if columns is not None:
                continue
            columns = (0, 1, None)
        pair = _csv_pair(cells, columns, where, typed)
        if pair is not None:
            found.append(pair)
    return found


def groups(text: str, *, what: str) -> dict[str, tuple[str, ...]]:
    """Named groups, one to a line: ``hair length: short hair, long hair``.

    Raises:
        FormatError: A line has no name, or a group has fewer than two tags.
        InputError: A name comes twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in content_lines(text):
        name, colon, rest = line.partition(":")
        where = f"{what}, line {number}"
        if not colon or not name.strip():
            raise FormatError(f"{where}: {line[:60]!r} has no name; write it as  name: tag, tag, tag")
        tags = tag_list(rest, what=where)
        if len(tags) < 2:
            raise FormatError(
                f"{where}: the group {name.strip()!r} needs at least two tags, given was {rest.strip()!r}"
            )
        if name.strip() in found:
            raise InputError(f"{where}: the group {name.strip()!r} comes twice; give each group a name of its own")
        found[name.strip()] = tags
    return found


def numbers_by_entry(text: str, *, what: str, minimum: float, maximum: float) -> dict[str, float]:
    """Lines such as ``*_hair = 0.2``.

    Raises:
        FormatError: A line has no number.
        InputError: A number is out of range.
    """
    found: dict[str, float] = {}
    for number, line in content_lines(text):
        for part in line.split(","):
            if not part.strip():
                continue
            entry, equals, value = part.rpartition("=")
            where = f"{what}, line {number}"
            try:
                amount = float(value)
            except ValueError as cause:
                raise FormatError(f"{where}: {part.strip()[:60]!r} is not  entry = number") from cause
            if not equals or not entry.strip():
                raise FormatError(f"{where}: {part.strip()[:60]!r} is not  entry = number")
            if not minimum <= amount <= maximum:
                raise InputError(f"{where}: {value.strip()} is out of range, allowed is {minimum:g} to {maximum:g}")
            found[entry.strip()] = amount
    return found


def resolved(pairs_: Sequence[Pair], *, what: str) -> dict[str, str]:
    """Follows chains: normal form of each first tag to the tag it finally becomes, as written.

    Raises:
        InputError: A chain runs in a circle (it is written out), or one tag is to become two.
    """
    direct: dict[str, Pair] = {}
    for pair in pairs_:
        source, target = normal(pair.source), normal(pair.target)
        if source == target:
            continue
        earlier = direct.get(source)
        if earlier is not None and normal(earlier.target) != target:
            raise InputError(
                f"{pair.where}: {pair.source!r} is to become {pair.target!r}, but {earlier.where} makes it "
                f"{earlier.target!r}; keep one of them"
            )
        direct.setdefault(source, pair)
    ends: dict[str, str] = {}
    for source in direct:
        _follow(source, direct, ends, what)
    return {source: ends[source] for source in direct}


def check_no_circle(edges: Mapping[str, Sequence[str]], *, what: str) -> None:
    """Refuses relations that run in a circle.

    Raises:
        InputError: They do; the circle is written out.
    """
    done: set[str] = set()
    for start in edges:
        path: dict[str, None] = {}
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            node, place = stack.pop()
            if place == 0:
                if node in done:
                    continue
                path[node] = None
            children = edges.get(node, ())
            if place >= len(children):
                done.add(node)
                path.pop(node, None)
                continue
            stack.append((node, place + 1))
            child = children[place]
            if child in path:
                names = list(path)
                raise InputError(f"{what} runs in a circle: {circle_text([*names[names.index(child) :], child])}")
            stack.append((child, 0))


def circle_text(names: Sequence[str]) -> str:
    """A circle of names with arrows, shortened in the middle."""
    shown = list(names) if len(names) <= 8 else [*names[:4], "...", *names[-3:]]
    return f"{f' {ARROW} '.join(shown)}; take one of these lines out"


def _follow(source: str, direct: Mapping[str, Pair], ends: dict[str, str], what: str) -> None:
    """Finds the end of a chain, and with it that of every tag on the way."""
    way: dict[str, None] = {}
    name = target = source
    while name in direct and name not in ends:
        if name in way:
            names = list(way)
            raise InputError(f"{what} runs in a circle: {circle_text([*names[names.index(name) :], name])}")
        way[name] = None
        target = direct[name].target
        name = normal(target)
    end = ends.get(name) or target
    ends.update(dict.fromkeys(way, end))


def _arrow_pair(text: str, where: str, typed: bool) -> Pair:
    parts = text.split(ARROW)
    if len(parts) != 2 or not all(part.strip() for part in parts):
        raise FormatError(f"{where}: {text.strip()[:60]!r} is not a pair; write it as  old tag {ARROW} new tag")
    source, target = (checked_tag(part, where) for part in parts)
    return Pair(source=source, target=target, where=where, typed=typed)


def _csv_cells(line: str, where: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(line), strict=True, skipinitialspace=True))
    except csv.Error as cause:
        raise FormatError(f"{where}: {line[:60]!r} is not CSV ({cause}); close the quotes") from cause
    return [cell.strip() for cell in rows[0]] if rows else []


def _header(cells: Sequence[str]) -> tuple[int, int, int | None] | None:
    lower = [cell.casefold() for cell in cells]
    sources = [place for place, cell in enumerate(lower) if cell in _HEADER_FROM]
    targets = [place for place, cell in enumerate(lower) if cell in _HEADER_TO]
    if not sources or not targets:
        return None
    return sources[0], targets[0], lower.index("status") if "status" in lower else None


def _csv_pair(cells: Sequence[str], columns: tuple[int, int, int | None], where: str, typed: bool) -> Pair | None:
    first, second, status = columns
    if len(cells) <= max(first, second) or (columns == (0, 1, None) and len(cells) != 2):
        raise FormatError(
            f"{where}: expected two columns, found {len(cells)} ({', '.join(cells)[:60]!r}); write  old tag,new tag"
        )
    if status is not None and status < len(cells) and cells[status].casefold() in _DEAD:
        return None
    return Pair(
        source=checked_tag(cells[first], where),
        target=checked_tag(cells[second], where),
        where=where,
        typed=typed,
    )
