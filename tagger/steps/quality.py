"""Words for quality from the score that a site's users gave: by fixed cuts, or by percentile inside a rating."""

import csv
import io
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import FormatError, InputError
from ...core.params import Params, param
from ...dataset.columns import CATEGORIES, TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import normal, normals
from ...dataset.table import Dataset
from ._lists import numbers_by_entry
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import QUALITY, RULE_SOURCE, rows_of

DEFAULT_CUTS = "masterpiece = 60, best quality = 18, high quality = 6"
DEFAULT_PERCENTILES = (
    "masterpiece = 90, best quality = 75, great quality = 60, good quality = 45, normal quality = 30, "
    "low quality = 10, worst quality = 0"
)
_SCORE_TAG = re.compile(r"score:\s*(-?\d{1,9})")
_RATING_TAG = re.compile(r"rating:\s*(\w+)")
_MAX_SCORE = 1e9


@dataclass(frozen=True, kw_only=True)
class QualityParams(Params):
    """Words and their limits."""

    mode: str = param(
        "score",
        doc="score: a picture gets the word of the highest cut that its score reaches; percentile: the same over the "
        "share of pictures of the same rating that score less, which is fair to old pictures and to every rating",
        choices=("score", "percentile"),
    )
    cuts: str = param(DEFAULT_CUTS, doc="Words with the least score, for the mode 'score'", multiline=True)
    percentiles: str = param(
        DEFAULT_PERCENTILES, doc="Words with the least percentile (0 to 100), for the mode 'percentile'", multiline=True
    )
    measure: str = param(
        "score",
        doc="What the site's metadata says: its score, or how many marked the picture as a favourite",
        choices=("score", "favourites"),
    )
    place: str = param("end", doc="Where the word goes: before all tags or after them", choices=("end", "front"))
    file: str = param("", doc="A CSV file below an allowed folder with file name, score, and maybe rating, for folders "
                              "without site metadata", advanced=True)  # fmt: skip


def apply(dataset: Dataset, params: QualityParams, context: StepContext) -> Outcome:
    """Puts one word into each caption whose score is known; tags such as ``score:25`` are read and taken out."""
    what = "cuts" if params.mode == "score" else "percentiles"
    low, high = (-_MAX_SCORE, _MAX_SCORE) if params.mode == "score" else (0.0, 100.0)
    cuts = numbers_by_entry(getattr(params, what), what=what, minimum=low, maximum=high)
    if not cuts:
        raise InputError(f"there are no {what}; write for instance  {DEFAULT_CUTS}")
    scores, ratings, unmatched = _scores(dataset, params, context)
    known = ~np.isnan(scores)
    values = scores if params.mode == "score" else _percentiles(scores, ratings)
    words = sorted(cuts, key=lambda word: cuts[word])
    limits = np.array([cuts[word] for word in words])
    chosen = np.where(known, np.searchsorted(limits, np.nan_to_num(values), side="right") - 1, -1)
    result, removed = _without_old(dataset.tags, words, chosen)
    result, rules = _with_words(result, words, chosen, params.place)
    if removed:
        rules.append(RuleCount(rule="other words for quality, and score tags", touched=0, removed=removed))
    unknown = int(np.count_nonzero(~known))
    if unknown:
        unmatched = (*unmatched, f"{unknown} of {len(dataset)} captions have no score and get no word")
    return outcome(dataset, result, STEP.name, params, rules, unmatched)


def _scores(
    dataset: Dataset, params: QualityParams, context: StepContext
) -> tuple[NDArray[np.float64], NDArray[np.int64], tuple[str, ...]]:
    """Score (nan: not known) and a number for the rating of each picture."""
    tags = dataset.tags
    scores = np.full(len(dataset), np.nan)
    if params.measure == "favourites" and dataset.site_favourites is not None:
        scores = np.where(dataset.site_favourites >= 0, dataset.site_favourites.astype(np.float64), np.nan)
    elif params.measure == "score" and dataset.site_scores is not None:
        scores = dataset.site_scores.astype(np.float64)
    ratings = np.zeros(len(dataset), dtype=np.int64)
    if dataset.site_ratings is not None:
        ratings = dataset.site_ratings.astype(np.int64)
    _from_tags(tags, scores, ratings, by_score=params.measure == "score")
    unmatched: tuple[str, ...] = ()
    text = context.text_of(params.file)
    if text:
        unmatched = _from_file(dataset, text, f"file {params.file!r}", scores, ratings)
    return scores, ratings, unmatched


def _from_tags(tags: TagColumn, scores: NDArray[np.float64], ratings: NDArray[np.int64], *, by_score: bool) -> None:
    rating_category = CATEGORIES.index("rating")
    kinds: dict[str, int] = {}
    for place, name in enumerate(normals(tags.vocabulary)):
        score = _SCORE_TAG.fullmatch(name) if by_score else None
        rating = _RATING_TAG.fullmatch(name)
        if score:
            scores[tags.rows_with(place)] = float(score.group(1))
        elif rating or tags.categories[place] == rating_category:
            word = rating.group(1) if rating else name
            ratings[tags.rows_with(place)] = 1000 + kinds.setdefault(word, len(kinds))


def _from_file(
    dataset: Dataset, text: str, what: str, scores: NDArray[np.float64], ratings: NDArray[np.int64]
) -> tuple[str, ...]:
    by_name: dict[str, tuple[float, str]] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and len(cells) > 1 and not _is_number(cells[1])):
            continue
        if len(cells) < 2 or not _is_number(cells[1]):
            raise FormatError(
                f"{what}, line {number}: expected  file name,score[,rating], found {','.join(cells)[:60]!r}"
            )
        by_name[_file_key(cells[0])] = float(cells[1]), cells[2].casefold() if len(cells) > 2 else ""
    kinds: dict[str, int] = {}
    used = set()
    for place, name in enumerate(dataset.names):
        for key in (_file_key(name), _file_key(name.rpartition("/")[2])):
            if key in by_name:
                used.add(key)
                scores[place] = by_name[key][0]
                if by_name[key][1]:
                    ratings[place] = 2000 + kinds.setdefault(by_name[key][1], len(kinds))
                break
    missing = [name for name in by_name if name not in used]
    sentences = tuple(f"entry {name!r} matched 0 images" for name in missing[:5])
    return (*sentences, *((f"and {len(missing) - 5} more lines of the file",) if len(missing) > 5 else ()))


def _file_key(name: str) -> str:
    """A file's name for comparing: systems differ in the Unicode form and the case they keep."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) <= _MAX_SCORE
    except ValueError:
        return False


def _percentiles(scores: NDArray[np.float64], ratings: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the pictures of the same rating with a lower score, 0..100 (HakuBooru's favourites percentile)."""
    result = np.full(len(scores), np.nan)
    for rating in np.unique(ratings).tolist():
        rows = np.flatnonzero((ratings == rating) & ~np.isnan(scores))
        if len(rows):
            ordered = np.sort(scores[rows])
            result[rows] = 100.0 * np.searchsorted(ordered, scores[rows], side="left") / len(rows)
    return result


def _without_old(tags: TagColumn, words: list[str], chosen: NDArray[np.int64]) -> tuple[TagColumn, int]:
    """Without score tags, and without words of the list other than the chosen one."""
    names = normals(tags.vocabulary)
    word_of = {normal(word): place for place, word in enumerate(words)}
    number = np.array([word_of.get(name, -1) for name in names] or [-1], dtype=np.int64)
    is_score = np.array([bool(_SCORE_TAG.fullmatch(name)) for name in names] or [False], dtype=bool)
    places = np.flatnonzero((number >= 0)[tags.ids] | is_score[tags.ids]) if len(tags.ids) else np.zeros(0, np.int64)
    drop = np.zeros(len(tags.ids), dtype=bool)
    rows = rows_of(tags, places)
    wrong = is_score[tags.ids[places]] | ((number[tags.ids[places]] != chosen[rows]) & (chosen[rows] >= 0))
    drop[places[wrong]] = True
    return tags.keep(~drop), int(np.count_nonzero(wrong))


def _with_words(
    tags: TagColumn, words: list[str], chosen: NDArray[np.int64], place: str
) -> tuple[TagColumn, list[RuleCount]]:
    column = tags.with_vocabulary(words, category=QUALITY)
    column = column.with_categories(dict.fromkeys(words, "quality"))
    names = normals(column.vocabulary)
    word_of = {normal(word): number for number, word in enumerate(words)}
    number = np.array([word_of.get(name, -1) for name in names], dtype=np.int64)
    places = np.flatnonzero(number[column.ids] >= 0) if len(column.ids) else np.zeros(0, np.int64)
    rows = rows_of(column, places)
    there = np.zeros(len(column), dtype=bool)
    there[rows[number[column.ids[places]] == chosen[rows]]] = True
    new = np.flatnonzero((chosen >= 0) & ~there)
    ids = np.array([column.id_of(word) for word in words], dtype=np.int32)
    result = column.with_tags(new, ids[chosen[new]], front=place == "front", source=RULE_SOURCE)
    counts = np.bincount(chosen[chosen >= 0], minlength=len(words))
    added = np.bincount(chosen[new], minlength=len(words))
    rules = [
        RuleCount(rule=word, touched=int(added[at]), added=int(added[at]), note=f"{int(counts[at])} captions have it")
        for at, word in reversed(list(enumerate(words)))
    ]
    return result, rules


STEP = Step(
    name="quality",
    title="Quality Words",
    summary="Puts a word for quality into each caption, from the site's score by fixed cuts or by percentile",
    source="6, 18 and 60: a LoRA trainer's cuts on site scores; HakuBooru: percentile of favourites inside each rating",
    params=QualityParams,
    apply=apply,
    main="cuts",
)
