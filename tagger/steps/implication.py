"""General tags beside special ones: ``shirt`` says nothing more where ``white shirt`` stands.

By pairs that are given, and by whole last words (``shirt`` and ``white shirt``); never by a part of a word, so ``tail``
stays beside ``ponytail``. Counts of people stay. Words that turn the meaning round keep the general tag.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ...core.params import Params, param
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import matched_nothing, normal, normals, places_by_normal
from ...dataset.table import Dataset
from ._general import last_word_generals
from ._lists import Pair, check_no_circle, pairs
from ._match import Matcher, entries, file_summary
from ._people import is_people_tag
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import RULE_SOURCE, captions_and_tags, drop_occurrences, fixed_mask, rows_of

MAX_IMPLIED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ImplicationParams(Params):
    """Which tags imply which, and what is done."""

    pairs: str = param(
        "",
        doc="One pair to a line, special tag first: 'lion -> felid', or CSV 'lion,felid'. Chains are followed",
        multiline=True,
    )
    file: str = param(
        "",
        doc="A CSV file below an allowed folder with more pairs, such as danbooru's or e621's list of implications",
    )
    last_words: bool = param(True, doc="'white shirt' implies 'shirt': whole words at the end, never parts of a word")
    action: str = param(
        "drop general",
        doc="Take out the general tag where a special one stands, or put the general tags of the pairs in",
        choices=("drop general", "add general"),
    )
    keep: str = param(
        "",
        doc="General tags that stay, such as skirt beside plaid skirt; exact, glob:, regex: or category:",
        multiline=True,
    )


def apply(dataset: Dataset, params: ImplicationParams, context: StepContext) -> Outcome:
    """Drops or adds general tags."""
    given = pairs(params.pairs, what="pairs")
    given += pairs(context.text_of(params.file), what=f"file {params.file!r}", typed=False)
    tags = dataset.tags
    matcher = Matcher(tags)
    implied = _closure(given, matcher.known())
    unmatched = _unmatched(matcher, given)
    if params.action == "add general":
        result, rules = _add(tags, implied)
        return outcome(dataset, result, STEP.name, params, rules, unmatched)
    general_of = _generals_in_use(tags, implied, last_words=params.last_words)
    if params.keep.strip():
        spared = entries(params.keep, what="keep")
        kept = matcher.mask(spared)
        general_of = {special: [one for one in ones if not kept[one]] for special, ones in general_of.items()}
        unmatched += matcher.unmatched(spared)
    result, rules = _drop(tags, general_of, fixed_mask(dataset))
    return outcome(dataset, result, STEP.name, params, rules, unmatched)


def _closure(given: Sequence[Pair], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """All that each of some tags implies over any number of pairs, in normal form."""
    direct: dict[str, list[str]] = {}
    for pair in given:
        source, target = normal(pair.source), normal(pair.target)
        if source != target and target not in direct.setdefault(source, []):
            direct[source].append(target)
    check_no_circle(direct, what="the list of implications")
    closed: dict[str, tuple[str, ...]] = {}
    total = 0
    for start in names:
        if start not in direct:
            continue
        seen: dict[str, None] = {}
        waiting = deque(direct[start])
        while waiting:
            name = waiting.popleft()
            if name not in seen:
                seen[name] = None
                waiting.extend(direct.get(name, ()))
        closed[start] = tuple(seen)
        total += len(seen)
        if total > MAX_IMPLIED:
            raise InputError(f"the list of implications makes more than {MAX_IMPLIED} pairs; shorten its chains")
    return closed


def _generals_in_use(
    tags: TagColumn, implied: Mapping[str, tuple[str, ...]], *, last_words: bool
) -> dict[int, list[int]]:
    """Ids of the general tags in use by the id of each special tag in use; counts of people are left out."""
    counts = tags.counts()
    places = places_by_normal(tags.vocabulary)
    found: dict[int, list[int]] = {}
    for number, name in enumerate(normals(tags.vocabulary)):
        if not counts[number]:
            continue
        by_words = last_word_generals(name) if last_words and not is_people_tag(name) else []
        generals = [*implied.get(name, ()), *by_words]
        ids = [
            place
            for general in dict.fromkeys(generals)
            if not is_people_tag(general) and general != name
            for place in places.get(general, ())
            if counts[place]
        ]
        if ids:
            found[number] = ids
    return found


def _drop(
    tags: TagColumn, general_of: Mapping[int, list[int]], fixed: NDArray[np.bool_]
) -> tuple[TagColumn, tuple[RuleCount, ...]]:
    rows, generals = _implied_occurrences(tags, general_of)
    size = max(len(tags.vocabulary), 1)
    wanted = np.unique(rows * size + generals)
    is_general = np.zeros(size, dtype=bool)
    is_general[generals] = True
    places = np.flatnonzero(is_general[tags.ids])
    keys = rows_of(tags, places) * size + tags.ids[places]
    drop = np.zeros(len(tags.ids), dtype=bool)
    drop[places[np.isin(keys, wanted, assume_unique=False)]] = True
    drop &= ~fixed
    listed = np.unique(tags.ids[drop])
    rule_of_tag = np.full(size, -1, dtype=np.int32)
    rule_of_tag[listed] = np.arange(len(listed), dtype=np.int32)
    names = [f"{tags.vocabulary[place]}, which a special tag implies" for place in listed.tolist()]
    return drop_occurrences(tags, drop, rule_of_tag[tags.ids], names)


def _add(tags: TagColumn, implied: Mapping[str, tuple[str, ...]]) -> tuple[TagColumn, tuple[RuleCount, ...]]:
    counts = tags.counts()
    names = normals(tags.vocabulary)
    present = {name for name, count in zip(names, counts.tolist(), strict=True) if count}
    needed = dict.fromkeys(general for name in present for general in implied.get(name, ()))
    places = places_by_normal(tags.vocabulary)
    column = tags.with_vocabulary(name for name in needed if name not in places)
    places = places_by_normal(column.vocabulary)
    spelled = {
        name: max(places[name], key=lambda place: counts[place] if place < len(counts) else 0) for name in needed
    }
    general_of = {
        number: [spelled[general] for general in implied[name]]
        for number, name in enumerate(names)
        if name in implied and counts[number]
    }
    rows, generals = _implied_occurrences(column, general_of)
    # A general tag that is there in any spelling is not put in again.
    form = np.array([places[name][0] for name in normals(column.vocabulary)], dtype=np.int64)
    size = max(len(form), 1)
    _, first = np.unique(rows * size + form[generals], return_index=True)
    first.sort()
    rows, generals = rows[first], generals[first]
    there = column.row_of_occurrence.astype(np.int64) * size + form[column.ids]
    missing = ~np.isin(rows * size + form[generals], there)
    rows, generals = rows[missing], generals[missing]
    result = column.with_tags(rows, generals.astype(np.int32), source=RULE_SOURCE)
    touched, added = captions_and_tags(rows, generals, len(column.vocabulary))
    rules = [
        RuleCount(rule=f"{column.vocabulary[place]}, implied", touched=int(touched[place]), added=int(added[place]))
        for place in np.flatnonzero(added).tolist()
    ]
    return (result if len(rows) else tags), tuple(rules)


def _implied_occurrences(
    tags: TagColumn, general_of: Mapping[int, list[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and general id for every occurrence of a special tag, in the order of the captions."""
    starts = np.zeros(len(tags.vocabulary) + 1, dtype=np.int64)
    for special, generals in general_of.items():
        starts[special + 1] = len(generals)
    np.cumsum(starts, out=starts)
    flat = np.array([one for special in sorted(general_of) for one in general_of[special]], dtype=np.int64)
    how_many = np.diff(starts)[tags.ids]
    places = np.flatnonzero(how_many)
    repeats = how_many[places]
    rows = np.repeat(rows_of(tags, places), repeats)
    ends = np.cumsum(repeats)
    within = np.arange(len(rows), dtype=np.int64) - np.repeat(ends - repeats, repeats)
    return rows, flat[np.repeat(starts[tags.ids[places]], repeats) + within]


def _unmatched(matcher: Matcher, given: list[Pair]) -> tuple[str, ...]:
    known = matcher.known()
    present = frozenset(known)
    missing = [pair for pair in given if normal(pair.source) not in present]
    typed = [pair for pair in missing if pair.typed]
    sentences = [matched_nothing(pair.source, known) for pair in typed[:40]]
    sentences += [f"entry {pair.source!r} matched 0 images" for pair in typed[40:]]
    return (*sentences, *file_summary(len(missing) - len(typed), sum(not pair.typed for pair in given)))


STEP = Step(
    name="implication",
    title="Drop Implied Tags",
    summary="Takes out a general tag where a special one stands: by given pairs and by whole last words",
    source="Tag implications of danbooru and e621; the overlap rule of imgutils without its substring part",
    params=ImplicationParams,
    apply=apply,
    main="pairs",
)
