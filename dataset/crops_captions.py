"""Captions of crops: what is no longer in the picture does not stay in its caption.

A crop is tagged anew, and of the caption's tags only those stay that the tagger sees in the crop (no ``shoes`` under a
head). Tags that the tagger does not know, such as a trigger word, are no matter of what is seen and stay.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as made_field

from PIL import Image

from ..core.errors import InputError
from ..core.index import Index
from ..core.params import Params, param
from ..core.progress import Progress
from .detect_rows import Pass, look_at
from .diff import Diff, RuleCount, compare
from .normal import normal
from .table import Dataset
from .words import counted, printable

MODES = ("intersect", "intersect and add", "tagger only", "keep")
_MAX_SHOWN_RULES = 20


@dataclass(frozen=True, kw_only=True)
class RetagParams(Params):
    """What becomes of a crop's caption."""

    captions: str = param(
        "intersect",
        doc="intersect: of the caption's tags those stay that the tagger sees in the crop, or does not know. intersect "
        "and add: and what else it sees is put behind. tagger only: the caption is what it sees, behind the kept "
        "tokens. keep: captions stay as they are",
        choices=MODES,
    )
    unknown_tags: str = param(
        "stay", doc="Tags that the tagger does not know, such as trigger words, stay or go", choices=("stay", "go")
    )
    always: str = param(
        "", doc="Tags that always stay, separated by commas, such as: 1girl, solo", multiline=True, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class Retagger:
    """A tagger as this room needs it; the node makes one.

    Attributes:
        identity: Changes with the model and its preparation; keys what is remembered.
        side_px: Longer side of the pictures it wants.
        vocabulary: Every tag it knows, in normal form.
        tag: The tags in a picture, as they are written, best first, with their scores; also unlikely ones, so that
            other limits need no second look.
        limits: A tag with a lower score than its limit is not seen; none for tags that are not named.
    """

    identity: str
    side_px: int
    vocabulary: frozenset[str]
    tag: Callable[[Image.Image], Mapping[str, float]]
    limits: Mapping[str, float] = made_field(default_factory=dict)


@dataclass(kw_only=True)
class _Tally:
    removed: dict[str, int] = made_field(default_factory=dict)
    added: dict[str, int] = made_field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Retagged:
    """A data set with captions that fit its crops, and what was done to them."""

    dataset: Dataset
    diff: Diff
    problems: tuple[str, ...]


def retag_crops(
    dataset: Dataset,
    retagger: Retagger,
    params: RetagParams,
    *,
    index: Index | None = None,
    progress: Progress | None = None,
) -> Retagged:
    """Tags every cropped picture anew and brings it together with its caption.

    Pictures without a crop are left alone; the first ``keep_tokens`` tags of a subset always stay.

    Args:
        dataset: The crops.
        retagger: The tagger.
        params: How both are brought together.
        index: Where tags of crops are remembered by content.
        progress: Told after every picture; may cancel.

    Raises:
        InputError: No picture is cropped, or no tag of the captions is known to the tagger.
    """
    rows = [row for row in range(len(dataset)) if dataset.crop(row) is not None]
    if not rows:
        raise InputError("no picture of this data set is cropped, so there is nothing to tag anew; crop it first")
    if params.captions == "intersect" and params.unknown_tags == "stay":
        _check_known(dataset, rows, retagger)

    def look(image: Image.Image) -> bytes:
        return json.dumps(dict(retagger.tag(image)), ensure_ascii=False).encode("utf-8")

    way = Pass(kind=f"croptags:2:{retagger.identity}", side_px=retagger.side_px, look=look, text="Tagging crops")
    always = {normal(tag) for tag in params.always.replace("\n", ",").split(",") if tag.strip()}
    tally, changed = _Tally(), {}
    for row, data in look_at(dataset, rows, way, index=index, progress=progress):
        every: dict[str, float] = json.loads(data)
        seen = {tag: score for tag, score in every.items() if score >= retagger.limits.get(tag, 0.0)}
        tags = dataset.tags.row(row)
        kept = dataset.subset_of(row).keep_tokens
        new = merged(tags, seen, retagger.vocabulary, params, keep_tokens=kept, always=always)
        if new != tags:
            changed[row] = new
            _count(tally, tags, new)
    note = f"captions of {counted(len(rows), 'crop')}: {params.captions}, {len(changed)} changed"
    result = dataset.with_tags(changed, note=note)
    diff = compare(dataset, result, title=f"Captions of crops ({params.captions})", rules=_rules(tally))
    return Retagged(dataset=result, diff=diff, problems=tuple(printable(line) for line in way.problems))


def merged(
    tags: tuple[str, ...],
    seen: Mapping[str, float],
    vocabulary: frozenset[str],
    params: RetagParams,
    *,
    keep_tokens: int = 0,
    always: Iterable[str] = (),
) -> tuple[str, ...]:
    """The caption of a crop.

    Args:
        tags: The caption of the whole picture.
        seen: What the tagger sees in the crop, as written, with scores.
        vocabulary: Every tag the tagger knows, in normal form.
        params: How both are brought together.
        keep_tokens: Tags at the front that stay.
        always: Tags that stay, in normal form.
    """
    if params.captions == "keep":
        return tags
    visible, fixed = {normal(tag) for tag in seen}, set(always)
    stays = params.unknown_tags == "stay"

    def remains(place: int, tag: str) -> bool:
        form = normal(tag)
        if place < keep_tokens or form in fixed:
            return True
        if form not in vocabulary:
            return stays
        return form in visible and params.captions != "tagger only"

    old = [tag for place, tag in enumerate(tags) if remains(place, tag)]
    if params.captions == "intersect":
        return tuple(old)
    has = {normal(tag) for tag in old}
    return (*old, *(tag for tag in seen if normal(tag) not in has))


def _check_known(dataset: Dataset, rows: list[int], retagger: Retagger) -> None:
    used = {normal(tag) for row in rows for tag in dataset.tags.row(row)}
    if used and not used & retagger.vocabulary:
        first = ", ".join(sorted(used)[:5])
        raise InputError(
            f"the tagger knows none of the tags in these captions ({first}), so it can take none away; choose a tagger "
            "with their vocabulary, or another way of bringing captions together"
        )


def _count(tally: _Tally, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    for tag in set(before) - set(after):
        tally.removed[tag] = tally.removed.get(tag, 0) + 1
    for tag in set(after) - set(before):
        tally.added[tag] = tally.added.get(tag, 0) + 1


def _rules(tally: _Tally) -> list[RuleCount]:
    """What was taken away and put in most often."""
    removed = sorted(tally.removed.items(), key=lambda entry: (-entry[1], entry[0]))
    added = sorted(tally.added.items(), key=lambda entry: (-entry[1], entry[0]))
    rules = [RuleCount(rule=f"not in the crop: {tag}", touched=count, removed=count) for tag, count in removed]
    rules = rules[:_MAX_SHOWN_RULES]
    more = [RuleCount(rule=f"seen in the crop: {tag}", touched=count, added=count) for tag, count in added]
    return rules + more[:_MAX_SHOWN_RULES]
