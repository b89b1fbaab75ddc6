r"""The one form in which two tags are compared, whatever the spelling: underscores, escapes, case, width, blanks.

``White_Hair`` and ``white  hair`` are the same tag, ``kayoko \(blue archive\)`` and ``kayoko (blue archive)`` too. A
comparison never looks at parts of a word. What is written into a caption keeps its own spelling.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

KAOMOJI = frozenset(
    [
        "0_0",
        "(o)_(o)",
        "+_+",
        "+_-",
        "._.",
        "<o>_<o>",
        "<|>_<|>",
        "=_=",
        ">_<",
        "3_3",
        "6_9",
        ">_o",
        "@_@",
        "^_^",
        "o_o",
        "u_u",
        "x_x",
        "|_|",
        "||_||",
    ]
)
"""Tags in which an underscore is part of a face and is never a blank (the list of imgutils, TagGUI and toriato)."""

_MAX_CANDIDATES = 400
_ESCAPES = re.compile(r"\\+([()])")


def unescaped(tag: str) -> str:
    r"""A tag with ``\(`` and ``\)`` read as plain parentheses."""
    return _ESCAPES.sub(r"\1", tag) if "\\" in tag else tag


def normal(tag: str) -> str:
    r"""The form of a tag for comparing: NFKC, unescaped, one blank between words, ``_`` as blank, no case.

    A face such as ``^_^`` keeps its underscore. Applying it twice changes nothing.
    """
    folded = tag.casefold() if tag.isascii() else _folded(tag)
    folded = " ".join(unescaped(folded).split())
    if folded in KAOMOJI:
        return folded
    return " ".join(folded.replace("_", " ").split())


def _folded(tag: str) -> str:
    """Unicode's own form for comparing without case (TR31, NFKC_Casefold, as two passes)."""
    for _ in range(2):
        tag = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    return tag


@lru_cache(maxsize=4)
def normals(vocabulary: tuple[str, ...]) -> tuple[str, ...]:
    """The normal form of each tag of a vocabulary; the last few vocabularies are remembered."""
    return tuple(map(normal, vocabulary))


@lru_cache(maxsize=4)
def places_by_normal(vocabulary: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """The ids of all spellings by their normal form."""
    places: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(normals(vocabulary)):
        places[name] = (*places.get(name, ()), number)
    return places


def nearest_tags(given: str, known: Iterable[str], max_names: int = 2) -> list[str]:
    """The known tags (in normal form) most like the given one, best first.

    Quick for large vocabularies: only tags that share a word or their first letters are looked at closely.
    """
    wanted = normal(given)
    words = set(wanted.split())
    start = wanted[:2]
    shared = [
        name
        for name in known
        if name != wanted
        and abs(len(name) - len(wanted)) <= max(4, len(wanted) // 2)
        and (name.startswith(start) or not words.isdisjoint(name.split()))
    ]
    if len(shared) > _MAX_CANDIDATES:
        shared = sorted(shared, key=lambda name: abs(len(name) - len(wanted)))[:_MAX_CANDIDATES]
    return difflib.get_close_matches(wanted, shared, n=max_names, cutoff=0.6)


def matched_nothing(entry: str, known: Sequence[str], *, what: str = "entry") -> str:
    """The sentence for an entry that is on no picture, with the nearest tags that are."""
    near = nearest_tags(entry, known)
    hint = f", did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    shown = entry if len(entry) <= 80 else entry[:77] + "..."
    return f"{what} {shown!r} matched 0 images{hint}"
