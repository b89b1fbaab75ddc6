"""From scores to tags: thresholds per category and tag, MCut, exclusions, order. Vectorised over all pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from ..dataset.normal import nearest_tags, normal, normals
from .labels import written
from .scores import FLOOR, SparseScores, Vocabulary

MCUT_CHARACTER_FLOOR = 0.15
"""A character's threshold by MCut is never lower (imgutils)."""
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One tag that was picked: its name as written, its category and its score."""

    name: str
    category: str
    score: float


@dataclass(frozen=True, kw_only=True)
class PickParams(Params):
    """Which of the scored tags are kept and how they are written."""

    general_threshold: float = param(
        0.0,
        doc="Lowest score of a general tag, from 0.05 on; 0 takes the model's own threshold",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    character_threshold: float = param(
        0.0,
        doc="Lowest score of a character tag, from 0.05 on; 0 takes the model's own threshold",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    include_rating: bool = param(False, doc="Put the most likely rating first")
    characters_first: bool = param(True, doc="Put character tags before general ones", advanced=True)
    underscores_to_spaces: bool = param(True, doc="Write long_hair as long hair; faces such as ^_^ stay as they are")
    escape_parentheses: bool = param(
        False, doc="Write \\( and \\) for prompts; leave off for training captions", advanced=True
    )
    exclude: str = param(
        "", doc="Tags never to keep, separated by commas; spaces and underscores are the same", multiline=True
    )
    max_tags: int = param(0, doc="Keep at most so many tags, the surest; 0 for all", minimum=0, maximum=10_000)
    thresholds: str = param(
        "",
        doc="Further thresholds, one a line: 'copyright = 0.4' for a category, 'long hair = 0.6' for a tag; from 0.05",
        multiline=True,
        advanced=True,
    )
    mcut: bool = param(
        False,
        doc="Cut each category at the largest gap between its scores (MCut) instead of a threshold",
        advanced=True,
    )
    mcut_floor: float = param(
        0.15, doc="MCut never keeps a score below this", minimum=0.05, maximum=1.0, step=0.01, advanced=True
    )
    mcut_maximum: float = param(
        0.5,
        doc="MCut never drops a score above this: the gap after one or two sure tags would drop all others",
        minimum=0.05,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    categories: str = param(
        "general, character, copyright, artist, species, meta",
        doc="Categories to keep, separated by commas; 'all' for every one. Ratings have their own switch",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Refuses thresholds that are none."""
        super().__post_init__()
        threshold_entries(self.thresholds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """The tags of pictures in the order in which they are written.

    Attributes:
        offsets: int64 [pictures + 1].
        ids: int32 [tags of all pictures], places in the vocabulary.
        values: float32 [tags of all pictures], their scores.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    values: NDArray[np.float32]


def threshold_entries(text: str) -> dict[str, float]:
    """Thresholds by category or tag as typed: ``name = 0.4`` or ``name: 0.4``, one a line or separated by commas.

    Raises:
        InputError: A line is none of that.
    """
    found: dict[str, float] = {}
    for line in text.replace(",", "\n").splitlines():
        if not line.strip():
            continue
        name, sign, number = (part.strip() for part in (line.rpartition("=") if "=" in line else line.rpartition(":")))
        try:
            value = float(number)
        except ValueError as cause:
            raise InputError(f"thresholds: {line.strip()!r} must read like 'long hair = 0.6'") from cause
        if not sign or not name or not 0.0 <= value <= 1.0:
            raise InputError(f"thresholds: {line.strip()!r} must read like 'long hair = 0.6', with 0 to 1")
        found[name] = value
    return found


def unmatched_entries(vocabulary: Vocabulary, params: PickParams) -> list[str]:
    """One sentence per excluded tag or tag threshold that the tagger does not know, with the nearest it does."""
    known = normals(vocabulary.names)
    every = set(known)
    words = {normal(word) for word in vocabulary.categories} | {"all"}
    sentences = []
    for what, entries, allowed in (
        ("exclude", _listed(params.exclude), every),
        ("thresholds", list(threshold_entries(params.thresholds)), every | words),
    ):
        for entry in entries:
            if normal(entry) not in allowed:
                near = nearest_tags(entry, known)
                hint = f", did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
                sentences.append(f"{what}: the tagger knows no tag {entry!r}{hint}")
    return sentences


def floor_note(vocabulary: Vocabulary, params: PickParams) -> str:
    """A sentence where a threshold is lower than the lowest score there is; else nothing."""
    if params.mcut:
        return ""
    asked = {"general_threshold": params.general_threshold, "character_threshold": params.character_threshold}
    low = [f"{name} = {value:g}" for name, value in asked.items() if 0.0 < value < FLOOR]
    low += [f"{name} = {value:g}" for name, value in threshold_entries(params.thresholds).items() if value < FLOOR]
    own = sum(value < FLOOR for value in (*vocabulary.thresholds.values(), *vocabulary.tag_thresholds.values()))
    low += [f"{own} of the model's own"] if own else []
    if not low:
        return ""
    return f"thresholds below {FLOOR:g} act as {FLOOR:g}, because lower scores are not kept: {', '.join(low)}"


def pick_rows(
    scores: SparseScores, vocabulary: Vocabulary, params: PickParams, *, progress: Progress | None = None
) -> Picked:
    """Pick the tags of all pictures: above their thresholds, surest first, ratings and characters in front.

    A category without a threshold of its own takes that of general tags; of an argmax category only the strongest tag
    is kept, whatever its score. Scores below `scores.FLOOR` do not exist.

    Args:
        scores: What the tagger said.
        vocabulary: The tagger's tags.
        params: The choice.
        progress: Checked now and then.
    """
    progress = progress or SilentProgress()
    limits = limits_of(vocabulary, params)
    parts = []
    for first in range(0, max(len(scores), 1), _ROWS_AT_ONCE):
        progress.check()
        parts.append(
            _pick_part(scores.part(first, min(first + _ROWS_AT_ONCE, len(scores))), limits, vocabulary, params)
        )
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Picked(
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)]),
        ids=np.concatenate([part.ids for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def tags_of(picked: Picked, row: int, vocabulary: Vocabulary, params: PickParams) -> list[Tag]:
    """One picture's tags as objects."""
    place = slice(int(picked.offsets[row]), int(picked.offsets[row + 1]))
    return [
        Tag(name=written_by(vocabulary.names[tag], params), category=vocabulary.categories[tag], score=float(score))
        for tag, score in zip(picked.ids[place], picked.values[place], strict=True)
    ]


def written_by(name: str, params: PickParams) -> str:
    """A tag as the parameters want it written."""
    return written(
        name, underscores_to_spaces=params.underscores_to_spaces, escape_parentheses=params.escape_parentheses
    )


def tags_text(tags: Iterable[Tag], separator: str = ", ") -> str:
    """Return tags as one line."""
    return separator.join(tag.name for tag in tags)


def mcut_thresholds(
    rows: NDArray[np.int32], values: NDArray[np.float32], num_rows: int, *, floor: float, maximum: float
) -> NDArray[np.float32]:
    """MCut per picture: the middle of the largest gap between neighbouring scores (Largeron et al. 2012, "MCut").

    Below the lowest score that is kept comes 0, so that a single score is above its threshold.

    Args:
        rows: Picture of each score, ascending.
        values: The scores.
        num_rows: Number of pictures.
        floor: No threshold is lower.
        maximum: None is higher.

    Returns:
        float32 [num_rows].
    """
    thresholds = np.full(num_rows, floor, dtype=np.float32)
    if len(values):
        order = np.lexsort((-values, rows))
        ordered, of_row = values[order], rows[order]
        following = np.zeros_like(ordered)
        following[:-1] = np.where(of_row[1:] == of_row[:-1], ordered[1:], 0.0)
        by_gap = np.lexsort((-(ordered - following), of_row))  # the first of equal gaps, as it is stable
        firsts = by_gap[np.concatenate([[True], np.diff(of_row[by_gap]) > 0])]
        thresholds[of_row[firsts]] = (ordered[firsts] + following[firsts]) / 2.0
    clipped: NDArray[np.float32] = np.clip(thresholds, np.float32(floor), np.float32(max(floor, maximum)))
    return clipped


# parts ---------------------------------------------------------------------------------------------------------
def _pick_part(scores: SparseScores, limits: NDArray[np.float32], vocabulary: Vocabulary, params: PickParams) -> Picked:
    rows, ids, values = scores.rows(), scores.ids, scores.values
    keep = values >= limits[ids]
    if params.mcut:
        keep = _mcut_mask(scores, rows, limits, vocabulary, params)
    best = _argmax_mask(rows, ids, values, limits, vocabulary, params)
    kept = np.flatnonzero(keep)
    order = kept[np.argsort(_surest_first(rows[kept], values[kept]), kind="stable")]
    of_row = rows[order]
    counts = np.bincount(of_row, minlength=len(scores))
    starts = np.cumsum(counts) - counts
    if params.max_tags:
        near = np.arange(len(order)) - starts[of_row] < params.max_tags
        order, of_row = order[near], of_row[near]
    chosen = np.concatenate([best, order])
    is_character = np.array([word == "character" for word in vocabulary.categories], dtype=bool)
    group = np.ones(len(chosen), dtype=np.int8)
    group[: len(best)] = -1
    if params.characters_first:
        group[len(best) :][is_character[ids[order]]] = 0
    final = chosen[np.argsort(rows[chosen].astype(np.int64) * 4 + group, kind="stable")]
    lengths = np.bincount(rows[final], minlength=len(scores)).astype(np.int64)
    return Picked(
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]), ids=ids[final], values=values[final]
    )


def _surest_first(rows: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Keys that sort by picture, then by falling score: the bits of positive floats sort as the floats do."""
    bits = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
    keys: NDArray[np.int64] = (rows.astype(np.int64) << 32) + (np.int64(0x7FFFFFFF) - bits)
    return keys


def limits_of(vocabulary: Vocabulary, params: PickParams) -> NDArray[np.float32]:
    """Threshold of every tag, float32 [tags]; infinite for those never kept and for argmax categories.

    Of an argmax category the strongest is kept, whatever its score.
    """
    entries = {normal(name): value for name, value in threshold_entries(params.thresholds).items()}
    by_category = {word: entries[normal(word)] for word in set(vocabulary.categories) if normal(word) in entries}
    if params.character_threshold:
        by_category.setdefault("character", params.character_threshold)
    limits = vocabulary.limits(general=params.general_threshold, by_category=by_category)
    wanted = _wanted_categories(params)
    shut = {normal(name) for name in _listed(params.exclude)}
    for place, (name, word) in enumerate(zip(normals(vocabulary.names), vocabulary.categories, strict=True)):
        if name in entries and name not in by_category:
            limits[place] = entries[name]
        if not name or name in shut or word in vocabulary.argmax or not _is_wanted(word, wanted):
            limits[place] = np.inf
    return limits


def _is_wanted(word: str, wanted: frozenset[str] | None) -> bool:
    return wanted is None or word in wanted or (word.startswith("category ") and "general" in wanted)


def _wanted_categories(params: PickParams) -> frozenset[str] | None:
    """The categories to keep; None for all. Numbers a table does not explain count as general."""
    words = frozenset(word.strip().lower() for word in params.categories.split(",") if word.strip())
    return None if "all" in words or not words else words


def _mcut_mask(
    scores: SparseScores,
    rows: NDArray[np.int32],
    limits: NDArray[np.float32],
    vocabulary: Vocabulary,
    params: PickParams,
) -> NDArray[np.bool_]:
    keep = np.zeros(len(rows), dtype=bool)
    open_tags = np.isfinite(limits)
    for word in set(vocabulary.categories) - set(vocabulary.argmax):
        of_word = np.array([other == word for other in vocabulary.categories], dtype=bool) & open_tags
        entries = np.flatnonzero(of_word[scores.ids])
        floor = max(params.mcut_floor, MCUT_CHARACTER_FLOOR) if word == "character" else params.mcut_floor
        cuts = mcut_thresholds(
            rows[entries], scores.values[entries], len(scores), floor=floor, maximum=params.mcut_maximum
        )
        keep[entries] = scores.values[entries] >= cuts[rows[entries]]
    return keep


def _argmax_mask(
    rows: NDArray[np.int32],
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    limits: NDArray[np.float32],
    vocabulary: Vocabulary,
    params: PickParams,
) -> NDArray[np.int64]:
    """Places of the strongest entry of each wanted argmax category, ratings before the others."""
    wanted = _wanted_categories(params)
    found = [np.zeros(0, dtype=np.int64)]
    shut = {normal(name) for name in _listed(params.exclude)}
    allowed = np.array([bool(name) and name not in shut for name in normals(vocabulary.names)], dtype=bool)
    for word in sorted(vocabulary.argmax, key=lambda word: word != "rating"):
        is_wanted = params.include_rating if word == "rating" else wanted is None or word in wanted
        if not is_wanted:
            continue
        of_word = np.array([other == word for other in vocabulary.categories], dtype=bool) & allowed
        entries = np.flatnonzero(of_word[ids])
        if len(entries):
            order = entries[np.lexsort((ids[entries], -values[entries], rows[entries]))]
            found.append(order[np.concatenate([[True], np.diff(rows[order]) > 0])])
    return np.concatenate(found)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def by_name(vocabulary: Vocabulary) -> Mapping[str, int]:
    """Place of each tag by its normal form; of several spellings the first, ratings only where nothing else has it."""
    places: dict[str, int] = {}
    names = normals(vocabulary.names)
    for place in sorted(range(len(vocabulary)), key=lambda place: vocabulary.categories[place] in vocabulary.argmax):
        if names[place]:
            places.setdefault(names[place], place)
    return places
