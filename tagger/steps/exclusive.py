"""One tag of a group per caption: one length of hair, one size, one colour; an arbiter decides which."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ...core.params import Params, param
from ...dataset.columns import SOURCES, TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import matched_nothing, normal, places_by_normal
from ...dataset.table import Dataset
from ...dataset.words import counted
from ._lists import groups
from ._match import Matcher
from ._people import people_per_row
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import drop_occurrences, fixed_mask, positions, rows_of

DEFAULT_GROUPS = """\
hair length: very short hair, short hair, medium hair, long hair, very long hair, absurdly long hair
breast size: flat chest, small breasts, medium breasts, large breasts, huge breasts, gigantic breasts
gaze: looking at viewer, looking away, looking back, looking to the side, looking up, looking down
background colour: white background, black background, grey background, red background, blue background, green background"""  # noqa: E501

ARBITERS = ("score", "classifier", "last of the group", "first of the group", "first in the caption", "drop all")


@dataclass(frozen=True, kw_only=True)
class ExclusiveParams(Params):
    """The groups and who decides."""

    groups: str = param(
        DEFAULT_GROUPS,
        doc="One group to a line, ordered from small to large: 'hair length: short hair, medium hair, long hair'",
        multiline=True,
    )
    file: str = param("", doc="A text file below an allowed folder with more groups")
    arbiter: str = param(
        "score",
        doc="Which tag of a group stays: the one with the highest score; the one that a trained classifier gave; the "
        "last or first of the group's order; the first in the caption; or none. Where score or classifier say "
        "nothing, the first in the caption stays",
        choices=ARBITERS,
    )
    several_people: str = param(
        "skip",
        doc="Captions that name two or more people: leave them alone, because two people may differ, or treat them too",
        choices=("skip", "treat"),
    )


def apply(dataset: Dataset, params: ExclusiveParams, context: StepContext) -> Outcome:
    """Leaves at most one tag of each group in a caption."""
    wanted = groups(params.groups, what="groups")
    for name, members in groups(context.text_of(params.file), what=f"file {params.file!r}").items():
        if name in wanted:
            raise InputError(f"the group {name!r} stands in the text and in the file; take one out")
        wanted[name] = members
    if not wanted:
        raise InputError("there is no group; write a line such as  hair length: short hair, long hair")
    _check_disjoint(wanted)
    tags = dataset.tags
    group_of, rank_of = _placed(tags, wanted)
    place = np.flatnonzero(group_of[tags.ids] >= 0)
    rows = rows_of(tags, place)
    skipped = 0
    if params.several_people == "skip":
        alone = people_per_row(tags) < 2
        skipped = int(np.count_nonzero(~alone[np.unique(rows)]))
        place, rows = place[alone[rows]], rows[alone[rows]]
    fixed = fixed_mask(dataset)
    drop, without_score = _losers(tags, place, rows, group_of, rank_of, params.arbiter, fixed)
    drop &= ~fixed
    names = list(wanted)
    result, rules = drop_occurrences(tags, drop, group_of[tags.ids], names)
    notes = _notes(skipped, without_score, params.arbiter)
    if notes:
        rules = (*rules, *(RuleCount(rule=rule, touched=0, note=note) for rule, note in notes))
    return outcome(dataset, result, STEP.name, params, rules, _unmatched(tags, wanted))


def _losers(
    tags: TagColumn,
    place: NDArray[np.int64],
    rows: NDArray[np.int64],
    group_of: NDArray[np.int32],
    rank_of: NDArray[np.int32],
    arbiter: str,
    fixed: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], int]:
    """Occurrences [all] that go, and in how many contests score or classifier had nothing to say.

    One that is kept at the front wins whatever the arbiter says: it stays, and two of a group must not.
    """
    drop = np.zeros(len(tags.ids), dtype=bool)
    if not len(place):
        return drop, 0
    ids = tags.ids[place]
    contest = rows * (int(group_of.max()) + 1) + group_of[ids]
    by_place = positions(tags)[place].astype(np.float64)
    strength = np.zeros(len(place), dtype=np.float64)  # the highest stays, the first in the caption among equals
    if arbiter == "score" and tags.scores is not None:
        strength = np.nan_to_num(tags.scores[place].astype(np.float64), nan=-1.0)
    elif arbiter == "score":
        strength[:] = -1.0
    elif arbiter == "classifier":
        sources = np.zeros(len(place), np.uint8) if tags.sources is None else tags.sources[place]
        score = np.zeros(len(place)) if tags.scores is None else np.nan_to_num(tags.scores[place].astype(np.float64))
        strength = np.where(sources == SOURCES.index("classifier"), 1.0 + score, -1.0)
    elif arbiter in ("last of the group", "first of the group"):
        strength = rank_of[ids].astype(np.float64) * (1.0 if arbiter.startswith("last") else -1.0)
    strength[fixed[place]] = np.inf
    order = np.lexsort((by_place, -strength, contest))
    sorted_contest = contest[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_contest[1:] != sorted_contest[:-1]
    size = np.diff(np.append(np.flatnonzero(first), len(order)))
    real = np.repeat(_several(sorted_contest, rank_of[ids][order], first, size), size)
    losing = real & ~first if arbiter != "drop all" else real
    # The winner's own repetitions are not a contest.
    winner = np.repeat(rank_of[ids][order][first], size)
    if arbiter != "drop all":
        losing &= rank_of[ids][order] != winner
    drop[place[order[losing]]] = True
    silent = int(
        np.count_nonzero((strength[order][first] < 0) & _several(sorted_contest, rank_of[ids][order], first, size))
    )
    return drop, silent if arbiter in ("score", "classifier") else 0


def _several(
    contest: NDArray[np.int64], rank: NDArray[np.int32], first: NDArray[np.bool_], size: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether a contest has at least two different tags, bool [contests]."""
    starts = np.flatnonzero(first)
    low, high = np.minimum.reduceat(rank, starts), np.maximum.reduceat(rank, starts)
    several: NDArray[np.bool_] = low != high
    return several


def _placed(tags: TagColumn, wanted: Mapping[str, tuple[str, ...]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Group and place in the group's order of each tag of the vocabulary, -1 for others."""
    places = places_by_normal(tags.vocabulary)
    group_of = np.full(max(len(tags.vocabulary), 1), -1, dtype=np.int32)
    rank_of = np.full(max(len(tags.vocabulary), 1), -1, dtype=np.int32)
    for number, members in enumerate(wanted.values()):
        for rank, member in enumerate(members):
            for place in places.get(normal(member), ()):
                group_of[place], rank_of[place] = number, rank
    return group_of, rank_of


def _check_disjoint(wanted: Mapping[str, tuple[str, ...]]) -> None:
    owner: dict[str, str] = {}
    for name, members in wanted.items():
        for member in members:
            earlier = owner.setdefault(normal(member), name)
            if earlier != name:
                raise InputError(f"the tag {member!r} is in the groups {earlier!r} and {name!r}; leave it in one")


def _notes(skipped: int, without_score: int, arbiter: str) -> list[tuple[str, str]]:
    notes = []
    if skipped:
        notes.append(("several people", f"{counted(skipped, 'caption')} with two or more people left alone"))
    if without_score:
        notes.append(
            (f"no {arbiter}", f"there was none for {counted(without_score, 'choice')}; the first in the caption stayed")
        )
    return notes


def _unmatched(tags: TagColumn, wanted: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    matcher = Matcher(tags)
    known = matcher.known()
    present = frozenset(known)
    sentences = []
    for name, members in wanted.items():
        if not any(normal(member) in present for member in members):
            sentences.append(f"group {name!r} matched 0 images: none of its {len(members)} tags is there")
            continue
        near = [matched_nothing(member, known) for member in members if normal(member) not in present]
        sentences += [f"group {name!r}: {sentence}" for sentence in near if "did you mean" in sentence]
    return tuple(sentences)


STEP = Step(
    name="exclusive",
    title="Exclusive Groups",
    summary="Leaves one tag of each group in a caption; score, order or a trained classifier decides which",
    source="Exactly one size tag per part, chosen by a classifier; kohya's cleaning of multi-person images",
    params=ExclusiveParams,
    apply=apply,
    main="groups",
)
