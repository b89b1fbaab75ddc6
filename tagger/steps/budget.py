"""A limit on the length of captions, by number of tags or CLIP tokens: the least important tags go, not the last."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ...core.params import Params, param
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount
from ...dataset.table import Dataset
from ._lists import content_lines
from ._match import Matcher, entries
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import drop_occurrences, fixed_mask, order_within_rows

DEFAULT_CLASSES = """\
category:trigger, class:people
category:character, category:species, category:quality
class:outfit, class:worn
class:expression, class:pose
rest
class:background"""
REST = "rest"
MAX_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class BudgetParams(Params):
    """How long a caption may be, and what goes first."""

    limit: int = param(75, doc="The longest caption, in the unit below", minimum=1, maximum=10_000)
    unit: str = param(
        "tokens",
        doc="CLIP tokens (75 fill one chunk, 150 two, 225 three), commas counted, or number of tags",
        choices=("tokens", "tags"),
    )
    classes: str = param(
        DEFAULT_CLASSES,
        doc="One class of tags to a line, the most important first; tags, glob:, regex:, category: and class: entries. "
        "'rest' is everything that no line names. The kept tags at the front of a caption come before all",
        multiline=True,
    )
    inside: str = param(
        "order of the caption",
        doc="Which tags of one class stay: those that come first, those with the best score, or the most frequent ones",
        choices=("order of the caption", "score", "frequency"),
    )


def apply(dataset: Dataset, params: BudgetParams, context: StepContext) -> Outcome:
    """Keeps, in the order of importance, as many tags as fit; what stays keeps its place."""
    tags = dataset.tags
    names, priority_of_tag, unmatched = _priorities(tags, params.classes)
    priority = priority_of_tag[tags.ids]
    fixed = fixed_mask(dataset)
    priority[fixed] = 0
    costs, note = _costs(tags, params, context)
    order = order_within_rows(tags, _ranks(tags, priority, params.inside))
    spent = np.cumsum(costs[tags.ids[order]], dtype=np.int64)
    before = np.concatenate([np.zeros(1, dtype=np.int64), spent])[tags.offsets[:-1]]
    spent -= np.repeat(before, tags.lengths)
    # The last tag of a caption has no comma after it.
    limit = params.limit + (1 if params.unit == "tokens" else 0)
    drop = np.zeros(len(tags.ids), dtype=bool)
    drop[order] = spent > limit
    too_long = int(np.count_nonzero(drop & fixed))
    drop &= ~fixed
    result, rules = drop_occurrences(tags, drop, priority - 1, names)
    longest, mean = _lengths(tags, costs, params.unit)
    facts = f"longest {longest}, mean {mean:.1f} {params.unit} before; {note}"
    rules = (*rules, RuleCount(rule=f"limit of {params.limit} {params.unit}", touched=0, note=facts))
    if too_long:
        unmatched = (*unmatched, f"{too_long} kept tags at the front do not fit into the limit and stay even so")
    return outcome(dataset, result, STEP.name, params, rules, unmatched)


def estimated_tokens(texts: Sequence[str]) -> list[int]:
    """A rough number of CLIP tokens: one for each word of up to eight letters, one more for each further six."""
    found = []
    for text in texts:
        parts = re.findall(r"[^\W\d_]+|\d|[^\w\s]+|_", text)
        found.append(max(1, sum(1 + max(0, len(part) - 3) // 6 for part in parts)))
    return found


def _priorities(tags: TagColumn, text: str) -> tuple[list[str], NDArray[np.int32], tuple[str, ...]]:
    """Names of the classes, the class of each tag from 1 (0 is for fixed tags), and entries that matched nothing."""
    lines = content_lines(text)
    if len(lines) > MAX_CLASSES:
        raise InputError(f"there are {len(lines)} classes of tags, allowed are {MAX_CLASSES}")
    matcher = Matcher(tags)
    priority = np.zeros(max(len(tags.vocabulary), 1), dtype=np.int32)
    names: list[str] = []
    rest = 0
    unmatched: tuple[str, ...] = ()
    for number, line in lines:
        names.append(line if len(line) <= 60 else line[:57] + "...")
        if line.casefold() == REST:
            rest = len(names)
            continue
        wanted = entries(line, what=f"classes, line {number}")
        mask = matcher.mask(wanted)
        priority[np.flatnonzero(mask & (priority[: len(mask)] == 0))] = len(names)
        plain = tuple(entry for entry in wanted if entry.kind in ("exact", "glob", "regex"))
        unmatched += matcher.unmatched(plain)
    if not rest:
        names.append(REST)
        rest = len(names)
    priority[priority == 0] = rest
    return names, priority, unmatched


def _costs(tags: TagColumn, params: BudgetParams, context: StepContext) -> tuple[NDArray[np.int32], str]:
    """What each tag of the vocabulary takes of the limit, and how that was found out."""
    costs = np.ones(max(len(tags.vocabulary), 1), dtype=np.int32)
    if params.unit == "tags":
        return costs, "tags counted"
    used = np.flatnonzero(tags.counts())
    texts = [tags.vocabulary[place] for place in used.tolist()]
    if context.count_tokens is None:
        costs[used] = np.array(estimated_tokens(texts), dtype=np.int32) + 1
        return costs, "tokens are an ESTIMATE, for no tokenizer is there: connect a base to count them"
    costs[used] = np.array(context.count_tokens(texts), dtype=np.int32) + 1
    return costs, f"tokens counted by {context.token_counter}, tag by tag"


def _ranks(tags: TagColumn, priority: NDArray[np.int32], inside: str) -> NDArray[np.int64]:
    """Place of each occurrence by its class, then by the order inside a class."""
    if inside == "score" and tags.scores is not None:
        # Bits of a positive half float rise with its value; tags without a score come last.
        bits = np.where(np.isnan(tags.scores), np.float16(0), tags.scores).view(np.uint16)
        fine = (1 << 16) - 1 - bits.astype(np.int64)
    elif inside == "frequency":
        rank = np.empty(len(tags.vocabulary), dtype=np.int64)
        rank[np.argsort(-tags.counts(), kind="stable")] = np.arange(len(tags.vocabulary))
        fine = rank[tags.ids]
    else:
        return priority.astype(np.int64)  # the sort is stable
    fine += priority.astype(np.int64) * (int(fine.max(initial=0)) + 1)
    return fine


def _lengths(tags: TagColumn, costs: NDArray[np.int32], unit: str) -> tuple[int, float]:
    if not len(tags):
        return 0, 0.0
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(costs[tags.ids], dtype=np.int64)])
    per_row = np.diff(total[tags.offsets])
    if unit == "tokens":
        per_row = np.maximum(per_row - 1, 0)
    return int(per_row.max()), float(per_row.mean())


STEP = Step(
    name="budget",
    title="Tag Budget",
    summary="Keeps captions within a number of tags or CLIP tokens; the least important tags go first",
    source="CLIP's 75 tokens per chunk; too many tags per picture blur each one",
    params=BudgetParams,
    apply=apply,
    main="classes",
    needs_tokens=True,
)
