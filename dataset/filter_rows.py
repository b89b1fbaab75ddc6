"""Of which pictures a query is true: evaluated column by column, never picture by picture."""

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError, unknown_name
from .buckets import BucketRule
from .columns import CATEGORIES
from .filter_query import Both, Either, Flag, Glob, Not, Number, Query, Tag, Term, shown
from .normal import matched_nothing, normal, normals, places_by_normal
from .table import RATINGS, Dataset
from .tiers import measure

Rows = NDArray[np.bool_]
_ANY = re.compile(r"[*?]")
_MAX_HINTS = 5


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a query may ask that does not stand in the table.

    Attributes:
        rule: How the set will be trained; decides the tiers.
        names: Names of ``is:listed``: file names with or without ending, or paths below the opened folder.
        groups: Gives the pictures that look alike, each group by its places in the data set; asked only where a query
            needs it, since pictures are decoded for it.
    """

    rule: BucketRule = field(default_factory=lambda: BucketRule(resolution_px=512))
    names: tuple[str, ...] = ()
    groups: Callable[[], Iterable[tuple[int, ...]]] | None = None


@dataclass(frozen=True, kw_only=True)
class TermCount:
    """How many pictures one term of a query is true of, and a hint where there are none."""

    term: str
    pictures: int
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a query found: bool [pictures], and each of its terms."""

    rows: Rows
    terms: tuple[TermCount, ...]


def filter_rows(dataset: Dataset, query: Query, facts: Facts | None = None) -> Answer:
    """Finds the pictures of which a query is true.

    Raises:
        InputError: It asks for scores, a category, a list of names or duplicates that are not there.
    """
    asked = _Asked(dataset, facts or Facts())
    rows = asked.rows(query)
    return Answer(rows=rows, terms=tuple(asked.counts.values()))


class _Asked:
    """One query on its way through the columns."""

    def __init__(self, dataset: Dataset, facts: Facts) -> None:
        self._dataset = dataset
        self._facts = facts
        self._answers: dict[Term, Rows] = {}
        self._copies: NDArray[np.int64] | None = None
        self._later: Rows | None = None
        self.counts: dict[Term, TermCount] = {}

    def rows(self, query: Query) -> Rows:
        if isinstance(query, Not):
            return ~self.rows(query.part)
        if isinstance(query, Both):
            return np.asarray(np.logical_and.reduce([self.rows(part) for part in query.parts]), dtype=np.bool_)
        if isinstance(query, Either):
            return np.asarray(np.logical_or.reduce([self.rows(part) for part in query.parts]), dtype=np.bool_)
        if query not in self._answers:
            self._answers[query] = self._term(query)
            count = int(np.count_nonzero(self._answers[query]))
            self.counts[query] = TermCount(term=shown(query), pictures=count, hint="" if count else self._hint(query))
        return self._answers[query]

    def _term(self, term: Term) -> Rows:
        if isinstance(term, Tag):
            return self._holding(self._ids(term.text, is_glob=term.is_glob))
        if isinstance(term, Flag):
            return self._flag(term)
        if isinstance(term, Glob):
            return self._glob(term)
        if term.field == "score":
            return self._scored(term)
        return _within(self._numbers(term), term)

    # tags ------------------------------------------------------------------------------------------------------
    def _ids(self, text: str, *, is_glob: bool) -> Rows:
        """Which tags of the vocabulary a name or glob means."""
        vocabulary = self._dataset.tags.vocabulary
        wanted = np.zeros(len(vocabulary), dtype=np.bool_)
        if is_glob:
            matches = _pattern(normal(text)).match
            wanted[:] = np.fromiter((matches(name) is not None for name in normals(vocabulary)), bool, len(vocabulary))
        else:
            wanted[list(places_by_normal(vocabulary).get(normal(text), ()))] = True
        return wanted

    def _holding(self, wanted: Rows) -> Rows:
        return self._with_occurrences(self._places(wanted))

    def _places(self, wanted: Rows) -> NDArray[np.int64]:
        """Places of the occurrences of the wanted tags."""
        ids = self._dataset.tags.ids
        chosen = np.flatnonzero(wanted)
        return np.flatnonzero(ids == chosen[0] if len(chosen) == 1 else wanted[ids])

    def _with_occurrences(self, places: NDArray[np.int64]) -> Rows:
        found = np.zeros(len(self._dataset), dtype=np.bool_)
        found[np.searchsorted(self._dataset.tags.offsets, places, side="right") - 1] = True
        return found

    def _scored(self, term: Number) -> Rows:
        scores = self._dataset.tags.scores
        if scores is None:
            raise InputError(
                f"the query at column {term.column}: no tag of this data set has a score; tag it with a tagger first, "
                "or open captions that hold scores"
            )
        places = self._places(self._ids(term.name, is_glob=bool(_ANY.search(term.name))))
        return self._with_occurrences(places[_within(scores[places].astype(np.float64), term)])

    # numbers ---------------------------------------------------------------------------------------------------
    def _numbers(self, term: Number) -> NDArray[np.float64]:
        data = self._dataset
        width, height = data.width_px.astype(np.float64), data.height_px.astype(np.float64)
        simple: Mapping[str, Callable[[], NDArray[np.generic]]] = {
            "width": lambda: width,
            "height": lambda: height,
            "pixels": lambda: width * height,
            "aspect": lambda: width / height,
            "shorter": lambda: np.minimum(width, height),
            "longer": lambda: np.maximum(width, height),
            "bytes": lambda: data.size_bytes,
            "tags": lambda: data.tags.lengths,
            "repeats": lambda: data.repeats,
            "weight": lambda: np.ones(len(data)) if data.weights is None else data.weights,
            "tier": lambda: measure(data, self._facts.rule).tier,
            "site_score": lambda: np.full(len(data), np.nan) if data.site_scores is None else data.site_scores,
            "favourites": lambda: _known(data.site_favourites, len(data)),
            "duplicates": lambda: self._duplicates(term.column)[0],
            "category": lambda: self._of_category(term),
        }
        return np.asarray(simple[term.field](), dtype=np.float64)

    def _of_category(self, term: Number) -> NDArray[np.int64]:
        """How many tags of a category each picture has."""
        names = [name for name in CATEGORIES if name]
        if term.name.lower() not in names:
            error = unknown_name("category", term.name, names)
            raise InputError(f"the query at column {term.column}: {error}")
        tags = self._dataset.tags
        hits = (tags.categories == CATEGORIES.index(term.name.lower()))[tags.ids]
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(hits, dtype=np.int64)])
        counts: NDArray[np.int64] = np.diff(sums[tags.offsets])
        return counts

    def _duplicates(self, column: int) -> tuple[NDArray[np.int64], Rows]:
        """How many others look the same, and which pictures come after another that does."""
        if self._copies is None or self._later is None:
            if self._facts.groups is None:
                raise InputError(
                    f"the query at column {column}: duplicates are not known here; use the node 'Filter Data Set'"
                )
            self._copies = np.zeros(len(self._dataset), dtype=np.int64)
            self._later = np.zeros(len(self._dataset), dtype=np.bool_)
            for group in self._facts.groups():
                members = sorted(group)
                self._copies[members] = len(members) - 1
                self._later[members[1:]] = True
        return self._copies, self._later

    # flags and globs -------------------------------------------------------------------------------------------
    def _flag(self, term: Flag) -> Rows:
        data = self._dataset
        none = np.zeros(len(data), dtype=np.bool_)
        if term.name == "listed" and not self._facts.names:
            raise InputError(f"the query at column {term.column}: is:listed needs the list of names, which is empty")
        flags: Mapping[str, Callable[[], Rows]] = {
            "reg": lambda: data.is_reg,
            "captioned": lambda: data.tags.lengths > 0,
            "masked": lambda: none if data.masks is None else np.fromiter(map(bool, data.masks), bool, len(data)),
            "cropped": lambda: none if data.crops is None else np.asarray(data.crops.any(axis=1), dtype=np.bool_),
            "duplicate": lambda: self._duplicates(term.column)[1],
            "listed": lambda: _listed(data, self._facts.names),
            "portrait": lambda: data.height_px > data.width_px,
            "landscape": lambda: data.width_px > data.height_px,
            "square": lambda: data.width_px == data.height_px,
        }
        return flags[term.name]()

    def _glob(self, term: Glob) -> Rows:
        data, matches = self._dataset, _pattern(_file_form(term.pattern)).match
        if term.field == "concept":
            per_subset = [matches(_file_form(subset.concept)) is not None for subset in data.subsets]
            return np.array(per_subset, dtype=np.bool_)[data.subset_index]
        if term.field == "rating":
            per_rating = [matches(rating) is not None for rating in RATINGS]
            ratings = np.zeros(len(data), dtype=np.uint8) if data.site_ratings is None else data.site_ratings
            return np.array(per_rating, dtype=np.bool_)[ratings]
        if term.field == "name":
            return np.fromiter(
                (
                    any(matches(form) for form in (name.rpartition("/")[2], name))
                    for name in map(_file_form, data.names)
                ),
                bool,
                len(data),
            )
        known: dict[tuple[int, str], bool] = {}
        answers = np.zeros(len(data), dtype=np.bool_)
        above = [_folders_of(data, number) for number in range(len(data.subsets))]
        for row, (number, name) in enumerate(zip(data.subset_index.tolist(), data.names, strict=True)):
            key = number, name.rpartition("/")[0]
            if key not in known:
                path = "/".join(part for part in (above[number], _file_form(key[1])) if part)
                known[key] = any(matches(form) for form in (path, *path.split("/")))
            answers[row] = known[key]
        return answers

    def _hint(self, term: Term) -> str:
        """What may have been meant by a tag that no picture has."""
        is_tag = isinstance(term, Tag) or (isinstance(term, Number) and term.field == "score")
        if not is_tag or sum(bool(count.hint) for count in self.counts.values()) >= _MAX_HINTS:
            return ""
        tags = self._dataset.tags
        forms = normals(tags.vocabulary)
        used = sorted({forms[place] for place in np.flatnonzero(tags.counts())})
        return matched_nothing(term.text if isinstance(term, Tag) else term.name, used)  # type: ignore[union-attr]


def _known(counts: NDArray[np.int32] | None, rows: int) -> NDArray[np.float64]:
    """Counts as numbers, nan where they are not known (negative)."""
    if counts is None:
        return np.full(rows, np.nan)
    return np.where(counts < 0, np.nan, counts.astype(np.float64))


def _within(values: NDArray[np.float64], term: Number) -> Rows:
    """Which values lie in the range; nan lies in none."""
    low = values > term.low if term.low_open else values >= term.low
    high = values < term.high if term.high_open else values <= term.high
    return np.asarray(low & high, dtype=np.bool_)


def _pattern(glob: str) -> "re.Pattern[str]":
    """A glob of which only ``*`` and ``?`` have a meaning (brackets and parentheses stand in tags)."""
    return re.compile(fnmatch.translate(glob.replace("[", "[[]")))


def _file_form(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace("\\", "/").casefold()


def _folders_of(dataset: Dataset, number: int) -> str:
    """Path of a subset's folder from the opened folder's own name on."""
    folder, root = dataset.subsets[number].folder, dataset.root
    below = PurePosixPath(root.name, folder.relative_to(root).as_posix()) if folder.is_relative_to(root) else None
    return _file_form(str(below) if below is not None else folder.name)


def _listed(dataset: Dataset, names: Iterable[str]) -> Rows:
    """Which pictures stand in a list by name, by name without ending, or by path below the opened folder."""
    wanted = {_file_form(name.strip()).removeprefix("./") for name in names if name.strip()}
    above = [_folders_of(dataset, number).partition("/")[2] for number in range(len(dataset.subsets))]
    outer = [subset.folder.name.casefold() for subset in dataset.subsets]
    found = np.zeros(len(dataset), dtype=np.bool_)
    for row, (number, name) in enumerate(
        zip(dataset.subset_index.tolist(), map(_file_form, dataset.names), strict=True)
    ):
        base = name.rpartition("/")[2]
        forms = {name, base, base.rpartition(".")[0], f"{outer[number]}/{name}"}
        forms.add(f"{above[number]}/{name}" if above[number] else name)
        found[row] = not wanted.isdisjoint(forms)
    return found
