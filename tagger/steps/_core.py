"""Which tags belong to a class of pictures: how often each is there, and what the trait lists say about it."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

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


TRAITS = (Trait(kind="body", level=0), Trait(kind="body", level=1), Trait(kind="worn", level=0))
"""All traits there are; a tag's is told by its place here, -1 for none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CoreTable(Sequence[CoreTag]):
    """Every tag of every class, class after class, most frequent first within one.

    A set of many folders has millions of such pairs: they are columns here and become a `CoreTag` when asked for.

    Attributes:
        class_names: The classes.
        vocabulary: The tags.
        trait_of_tag: int8 [vocabulary], place in `TRAITS`, -1 for none.
        bounds: int64 [classes + 1]; class c has the rows from ``bounds[c]`` to ``bounds[c + 1]``.
        tag_ids: int32 [rows], place in the vocabulary.
        captions: int32 [rows].
        share: float64 [rows], 0..1.
        is_core: bool [rows].
    """

    class_names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    trait_of_tag: NDArray[np.int8]
    bounds: NDArray[np.int64]
    tag_ids: NDArray[np.int32]
    captions: NDArray[np.int32]
    share: NDArray[np.float64]
    is_core: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tag_ids)

    @overload
    def __getitem__(self, place: int) -> CoreTag: ...
    @overload
    def __getitem__(self, place: slice) -> list[CoreTag]: ...
    def __getitem__(self, place: int | slice) -> CoreTag | list[CoreTag]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        tag_id = int(self.tag_ids[place])
        trait = int(self.trait_of_tag[tag_id])
        return CoreTag(
            class_name=self.class_names[int(np.searchsorted(self.bounds, place, side="right")) - 1],
            tag=self.vocabulary[tag_id],
            tag_id=tag_id,
            captions=int(self.captions[place]),
            share=float(self.share[place]),
            trait=TRAITS[trait] if trait >= 0 else None,
            is_core=bool(self.is_core[place]),
        )

    @property
    def traits(self) -> NDArray[np.int8]:
        """The trait of each row, place in `TRAITS` or -1: int8 [rows]."""
        found: NDArray[np.int8] = self.trait_of_tag[self.tag_ids]
        return found

    def class_rows(self, number: int) -> range:
        """The rows of a class."""
        return range(int(self.bounds[number]), int(self.bounds[number + 1]))

    def class_of_rows(self) -> NDArray[np.int64]:
        """The class of each row, int64 [rows]."""
        return np.repeat(np.arange(len(self.class_names), dtype=np.int64), np.diff(self.bounds))


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


def core_table(dataset: Dataset, classes: Classes, *, core_share: float) -> CoreTable:
    """Every tag of every class with its share and verdict, most frequent first within a class.

    Source: the core tags of anime_screenshot_pipeline (share over a character's single-person pictures, default .35).
    """
    tags = dataset.tags.deduplicated()
    size, number = max(len(tags.vocabulary), 1), len(classes.names)
    rows = tags.row_of_occurrence
    single = _single_rows(tags, classes)
    places = np.flatnonzero(classes.of_row[rows] >= 0)
    keys = classes.of_row[rows[places]].astype(np.int64) * size + tags.ids[places]
    unique, captions = np.unique(keys, return_counts=True)
    alone, alone_captions = np.unique(keys[single[rows[places]]], return_counts=True)
    del keys, places
    of_single = np.zeros(len(unique), dtype=np.int64)
    of_single[np.searchsorted(unique, alone)] = alone_captions  # the keys of single rows are among all
    of_class, tag_ids = unique // size, (unique % size).astype(np.int32)
    totals = np.bincount(classes.of_row[single & (classes.of_row >= 0)], minlength=number)
    share = of_single / np.maximum(totals, 1)[of_class]
    used = np.unique(tag_ids)
    names = normals(tuple(tags.vocabulary[tag_id] for tag_id in used.tolist()))
    may_be_core, traits = np.zeros(size, dtype=bool), np.full(size, -1, dtype=np.int8)
    may_be_core[used] = [STOP_WORDS.isdisjoint(name.split()) for name in names]
    traits[used] = [-1 if (trait := trait_of(name)) is None else TRAITS.index(trait) for name in names]
    rank = np.zeros(size, dtype=np.int32)
    rank[sorted(used.tolist(), key=tags.vocabulary.__getitem__)] = np.arange(len(used), dtype=np.int32)
    order = np.lexsort((rank[tag_ids], -captions, -share, of_class))
    tag_ids, share = tag_ids[order], share[order]
    return CoreTable(
        class_names=classes.names,
        vocabulary=tags.vocabulary,
        trait_of_tag=traits,
        bounds=np.searchsorted(of_class, np.arange(number + 1)).astype(np.int64),
        tag_ids=tag_ids,
        captions=captions[order].astype(np.int32),
        share=share,
        is_core=(share >= core_share) & may_be_core[tag_ids],
    )


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
