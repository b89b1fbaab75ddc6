"""Which tags belong to a class of pictures: how often each is there, and what the trait lists say about it."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ...dataset.columns import TagColumn
from ...dataset.normal import normals
from ...dataset.table import Dataset
from ._classes import Trait, class_of, trait_of
from ._people import people_per_row
from ._words import words

CLASS_CHOICES = ("folder", "first tag", "whole data set")
STOP_WORDS = words("solo background looking smile mouth indoors outdoors simple standing sitting upper body")
"""Tags that hold one of these words are never the core of a class, however often they come."""
MAX_CLASSES = 5000


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Which class each picture is of.

    Attributes:
        names: The classes.
        of_row: int32 [pictures], place in ``names``, -1 for pictures of none (regularisation).
    """

    names: tuple[str, ...]
    of_row: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class CoreTag:
    """A tag of a class.

    Attributes:
        class_name: The class.
        tag: As written.
        tag_id: Its place in the vocabulary.
        captions: Captions of the class that hold it.
        share: Of the class's captions with a single person (of all, where none names people): 0..1.
        trait: What the trait lists say.
        is_core: Whether the share reaches the limit and it is no stop word.
    """

    class_name: str
    tag: str
    tag_id: int
    captions: int
    share: float
    trait: Trait | None
    is_core: bool

    @property
    def kind(self) -> str:
        """What the tag is about: a class of ``steps._classes``."""
        return class_of(normals((self.tag,))[0])


def classes_of(dataset: Dataset, by: str, *, skip_reg: bool = True) -> Classes:
    """Sorts pictures into classes.

    Args:
        dataset: The data set.
        by: "folder" (its concept or name), "first tag" or "whole data set".
        skip_reg: Regularisation pictures are of no class.

    Raises:
        InputError: There would be more than 5,000 classes.
    """
    if by == "folder":
        names = [subset.concept or subset.folder.name for subset in dataset.subsets]
        listed = list(dict.fromkeys(names))
        of_subset = np.array([listed.index(name) for name in names], dtype=np.int32)
        of_row: NDArray[np.int32] = of_subset[dataset.subset_index]
    elif by == "first tag":
        tags = dataset.tags
        firsts = np.full(len(tags), -1, dtype=np.int32)
        filled = tags.lengths > 0
        firsts[filled] = tags.ids[tags.offsets[:-1][filled]]
        unique, place = np.unique(firsts, return_inverse=True)
        of_row = place.reshape(-1).astype(np.int32)
        listed = [tags.vocabulary[place] if place >= 0 else "(no caption)" for place in unique.tolist()]
    else:
        listed, of_row = ["whole data set"], np.zeros(len(dataset), dtype=np.int32)
    if len(listed) > MAX_CLASSES:
        raise InputError(
            f"by {by} there are {len(listed)} classes, allowed are {MAX_CLASSES}; choose another way to class pictures"
        )
    if skip_reg:
        of_row = np.where(dataset.is_reg, np.int32(-1), of_row).astype(np.int32)
    return Classes(names=tuple(listed), of_row=of_row)


def core_table(dataset: Dataset, classes: Classes, *, core_share: float) -> list[CoreTag]:
    """Every tag of every class with its share and verdict, most frequent first within a class.

    Source: the core tags of anime_screenshot_pipeline (share over a character's single-person pictures, default .35).
    """
    tags = dataset.tags.deduplicated()
    size = max(len(tags.vocabulary), 1)
    rows = tags.row_of_occurrence
    of_occurrence = classes.of_row[rows].astype(np.int64)
    in_class = of_occurrence >= 0
    keys = of_occurrence[in_class] * size + tags.ids[in_class]
    unique, counts = np.unique(keys, return_counts=True)
    single = _single_rows(tags, classes)
    of_single = single[rows[in_class]]
    share_keys, share_counts = np.unique(keys[of_single], return_counts=True)
    single_counts = np.zeros(len(unique), dtype=np.int64)
    single_counts[np.searchsorted(unique, share_keys)] = share_counts  # the keys of single rows are among all
    totals = np.bincount(classes.of_row[single & (classes.of_row >= 0)], minlength=len(classes.names))
    names = normals(tags.vocabulary)
    # By tag, not by class and tag: a set of many folders has millions of such pairs.
    used = np.unique(unique % size).tolist()
    facts = {tag_id: (STOP_WORDS.isdisjoint(names[tag_id].split()), trait_of(names[tag_id])) for tag_id in used}
    table = []
    for key, count, alone in zip(unique.tolist(), counts.tolist(), single_counts.tolist(), strict=True):
        number, tag_id = divmod(key, size)
        share = alone / max(int(totals[number]), 1)
        may_be_core, trait = facts[tag_id]
        table.append(
            CoreTag(
                class_name=classes.names[number],
                tag=tags.vocabulary[tag_id],
                tag_id=tag_id,
                captions=count,
                share=share,
                trait=trait,
                is_core=share >= core_share and may_be_core,
            )
        )
    place = {name: number for number, name in enumerate(classes.names)}
    return sorted(table, key=lambda row: (place[row.class_name], -row.share, -row.captions, row.tag))


def _single_rows(tags: TagColumn, classes: Classes) -> NDArray[np.bool_]:
    """Captions that count for the shares: those with one person, or all of a class that has none of these."""
    single = people_per_row(tags) == 1
    valid = classes.of_row >= 0
    have = np.bincount(classes.of_row[valid & single], minlength=len(classes.names)) > 0
    result: NDArray[np.bool_] = valid & (single | ~have[np.maximum(classes.of_row, 0)])
    return result


def folder_rule(rules: Sequence[tuple[str, str]], name: str) -> str | None:
    """The value of the first rule whose glob a folder's name matches, in any case; None where none does."""
    for pattern, value in rules:
        if fnmatch.fnmatchcase(name.casefold(), pattern.casefold()):
            return value
    return None
