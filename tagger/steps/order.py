"""Order of tags in a caption: people first, by name, score or frequency, or shuffled from a seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.params import Params, param
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount, changed_rows
from ...dataset.normal import normals
from ...dataset.table import Dataset
from ._match import Matcher, entries
from ._people import count_of, is_people_tag
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import fixed_mask, hash_of_names, hashed, order_within_rows, row_hashes

MODES = ("keep", "people first", "by name", "by score", "most frequent first", "rarest first", "shuffled")


@dataclass(frozen=True, kw_only=True)
class OrderParams(Params):
    """How tags are ordered."""

    mode: str = param(
        "people first",
        doc="people first: solo, then 1girl and other counts, then the rest as it is; by score: the tagger's surest "
        "tags first; shuffled: anew from the seed for each picture",
        choices=MODES,
    )
    front: str = param(
        "",
        doc="Entries that come before all others, in this order: tags, glob:, regex:, category: or class:",
        multiline=True,
    )
    seed: int = param(0, doc="Decides the shuffled order", minimum=0, maximum=2**53)


def apply(dataset: Dataset, params: OrderParams, context: StepContext) -> Outcome:
    """Sorts each caption; triggers and the kept tags at the front stay where they are."""
    tags = dataset.tags
    wanted = entries(params.front, what="front")
    matcher = Matcher(tags)
    front = matcher.rule_of_tag(wanted).astype(np.int64)
    front[front < 0] = len(wanted)
    fine = _fine(dataset, params)
    span = int(fine.max(initial=0)) + 1
    ranks = front[tags.ids] * span + fine if len(tags.ids) else np.zeros(0, dtype=np.int64)
    ranks = np.where(fixed_mask(dataset), 0, ranks + 1)
    result = tags.reordered(order_within_rows(tags, ranks))
    moved = len(changed_rows(tags, result))
    rules = [RuleCount(rule=f"order: {params.mode}", touched=moved)] if moved else []
    if params.mode == "by score" and tags.scores is None:
        rules.append(RuleCount(rule="no scores", touched=0, note="this data set has no scores; tag it first"))
    return outcome(dataset, result if moved else tags, STEP.name, params, rules, matcher.unmatched(wanted))


def _fine(dataset: Dataset, params: OrderParams) -> NDArray[np.int64]:
    """Place of each occurrence by the mode, small integers; equal where the caption's own order decides."""
    tags = dataset.tags
    if params.mode == "by score" and tags.scores is not None:
        bits = np.where(np.isnan(tags.scores), np.float16(0), tags.scores).view(np.uint16).astype(np.int64)
        return (1 << 16) - 1 - bits
    if params.mode == "shuffled":
        draws = hashed(params.seed, "order", row_hashes(dataset), hash_of_names(tags))
        return (draws * (1 << 20)).astype(np.int64)
    per_tag = _per_tag(tags, params.mode)
    return per_tag[tags.ids] if len(tags.ids) else np.zeros(0, dtype=np.int64)


def _per_tag(tags: TagColumn, mode: str) -> NDArray[np.int64]:
    names = normals(tags.vocabulary)
    size = len(names)
    rank = np.zeros(max(size, 1), dtype=np.int64)
    if mode == "people first":
        for place, name in enumerate(names):
            rank[place] = 0 if name == "solo" else 1 if count_of(name) else 2 if is_people_tag(name) else 3
    elif mode == "by name":
        rank[sorted(range(size), key=names.__getitem__)] = np.arange(size)
    elif mode in ("most frequent first", "rarest first"):
        counts = tags.counts()
        wanted = -counts if mode.startswith("most") else counts
        rank[np.argsort(wanted, kind="stable")] = np.arange(size)
    return rank


STEP = Step(
    name="order",
    title="Order Tags",
    summary="Orders the tags of each caption: people first, by name, score or frequency, or shuffled from a seed",
    source="imgutils 0.19 sort_tags: solo, then counts, then the rest as it is, by score or shuffled",
    params=OrderParams,
    apply=apply,
    main="front",
)
