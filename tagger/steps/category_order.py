"""Tags sorted by what they are about: species, then general; artist, copyright and meta taken out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError, unknown_name
from ...core.params import Params, param
from ...dataset.columns import CATEGORIES
from ...dataset.diff import RuleCount, changed_rows
from ...dataset.normal import normals
from ...dataset.table import Dataset
from ._lists import tag_list
from ._people import people_mask
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import drop_by_rule, fixed_mask, order_within_rows

PEOPLE = "people"
WORDS = (*CATEGORIES[1:], PEOPLE)


@dataclass(frozen=True, kw_only=True)
class CategoryOrderParams(Params):
    """Order and what is dropped."""

    order: str = param(
        "trigger, species, people, character, general",
        doc="Categories from the front of a caption to its end: general, character, copyright, artist, meta, species, "
        "rating, quality, trigger, and 'people' for counts such as 1girl. Categories not named come last; a tag "
        "without a category counts as general",
    )
    drop: str = param("artist, copyright, meta", doc="Categories that are taken out")
    sort_by_name: str = param("species", doc="Categories whose tags are sorted by name; others keep their order")


def apply(dataset: Dataset, params: CategoryOrderParams, context: StepContext) -> Outcome:
    """Drops, then sorts; the kept tags at the front of a caption stay where they are."""
    order = _categories(params.order, "order")
    if not order:
        raise InputError("the order of categories is empty; write for instance  species, general")
    dropped = _categories(params.drop, "drop")
    tags = dataset.tags
    both = [word for word in dropped if word in order]
    if both:
        raise InputError(f"the category {both[0]!r} stands in the order and among those taken out; take it out of one")
    number = _numbers(dataset)
    rule_of_tag = np.full(max(len(tags.vocabulary), 1), -1, dtype=np.int32)
    for place, word in enumerate(dropped):
        rule_of_tag[np.flatnonzero(number == WORDS.index(word))] = place
    kept, rules = drop_by_rule(tags, rule_of_tag, [f"category {word}" for word in dropped])
    rank = _ranks(tags.vocabulary, number, order, _categories(params.sort_by_name, "sort_by_name"))
    smaller = dataset.with_tag_column(kept, note="")
    by_tag = rank[kept.ids] if len(kept.ids) else np.zeros(0, dtype=np.int64)
    fine = np.where(fixed_mask(smaller), 0, by_tag + 1)
    result = kept.reordered(order_within_rows(kept, fine))
    moved = len(changed_rows(kept, result))
    if moved:
        rules = (*rules, RuleCount(rule="sorted: " + ", ".join(order), touched=moved))
    else:
        result = kept
    unmatched = (
        ()
        if bool(tags.categories.any())
        else (
            "no tag of this data set has a category, so only counts of people could be told apart; open site metadata "
            "or run a tagger first",
        )
    )
    return outcome(dataset, result, STEP.name, params, rules, unmatched)


def _categories(text: str, what: str) -> list[str]:
    found = []
    for word in tag_list(text, what=what):
        if word.casefold() not in WORDS:
            raise unknown_name(f"category in {what}", word, WORDS)
        found.append(word.casefold())
    return found


def _numbers(dataset: Dataset) -> NDArray[np.int64]:
    """Place in ``WORDS`` of each tag of the vocabulary."""
    tags = dataset.tags
    number = np.maximum(tags.categories.astype(np.int64), 1) - 1
    number[people_mask(tags.vocabulary) & (tags.categories <= 1)] = WORDS.index(PEOPLE)
    return number


def _ranks(
    vocabulary: tuple[str, ...], number: NDArray[np.int64], order: list[str], by_name: list[str]
) -> NDArray[np.int64]:
    """Place of each tag in a sorted caption; equal where the caption's own order decides."""
    size = max(len(vocabulary), 1)
    coarse_of = {WORDS.index(word): place for place, word in enumerate(order)}
    # A count of people where the order does not name them is general.
    coarse_of.setdefault(WORDS.index(PEOPLE), coarse_of.get(WORDS.index("general"), len(order)))
    coarse = np.array([coarse_of.get(one, len(order)) for one in number.tolist()], dtype=np.int64)
    fine = np.zeros(len(vocabulary), dtype=np.int64)
    names = normals(vocabulary)
    alphabetical = np.empty(len(vocabulary), dtype=np.int64)
    alphabetical[sorted(range(len(vocabulary)), key=names.__getitem__)] = np.arange(len(vocabulary))
    sorted_ones = np.isin(number, [WORDS.index(word) for word in by_name])
    fine[sorted_ones] = alphabetical[sorted_ones]
    ranks: NDArray[np.int64] = coarse * size + fine
    return ranks


STEP = Step(
    name="category_order",
    title="Order by Category",
    summary="Sorts captions by category, species first, and takes out artist, copyright and meta tags",
    source="An embedding trainer's order: e621 species sorted, then general; artist, copyright and meta removed",
    params=CategoryOrderParams,
    apply=apply,
    main="order",
)
