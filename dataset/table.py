"""The data set on a wire: a columnar, immutable table of pictures that shares its columns with its ancestors.

A table of 200,000 pictures holds a handful of arrays and no object per picture; rows are built when asked for. Nothing
is decoded here: sizes come from headers, captions are lists of interned tags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from .columns import Digest, TagColumn, TextColumn, frozen, new_digest
from .parts import Skipped, Subset, nothing_left, options_of
from .words import counted, printable

__all__ = [
    "CAPTION_FILE",
    "CAPTION_FOLDER",
    "CAPTION_METADATA",
    "CAPTION_NONE",
    "CAPTION_SITE",
    "EXTRAS",
    "RATINGS",
    "Box",
    "Dataset",
    "ImageRow",
    "Skipped",
    "Subset",
    "nothing_left",
    "options_of",
]

CAPTION_NONE = 0
CAPTION_FILE = 1
CAPTION_FOLDER = 2
CAPTION_SITE = 3
CAPTION_METADATA = 4
"""Where a caption came from: nowhere (it is empty), its own file, the text of its folder, the metadata of the site it
was downloaded from, or a metadata file with the captions of many pictures."""

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in px."""

RATINGS = ("", "general", "safe", "sensitive", "questionable", "explicit")
"""Ratings of the sites; the place here is the number. ``safe`` is e621's mildest, ``general`` danbooru's."""

EXTRAS: Mapping[str, tuple[type[np.generic], int, float]] = {
    "crops": (np.int32, 4, 0),
    "full_px": (np.int32, 2, 0),
    "focus": (np.float32, 2, np.nan),
    "weights": (np.float32, 0, 1),
    "site_scores": (np.float32, 0, np.nan),
    "site_favourites": (np.int32, 0, -1),
    "site_ratings": (np.uint8, 0, 0),
}
"""Columns that only some data sets have: type, values per picture (0: one), and what stands where there is none."""

_FINGERPRINT_VERSION = b"atelier-dataset-1"


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One picture of a table, as an object for whoever needs one."""

    path: Path
    width_px: int
    height_px: int
    caption: str
    tags: tuple[str, ...]
    repeats: int
    is_reg: bool
    subset: Subset


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Handle of a data set. Every change makes a new one that shares what did not change.

    Attributes:
        root: The folder that was opened.
        subsets: The folders it is made of, with their options.
        names: File path of each picture below its subset's folder, with ``/``.
        width_px: int32 [pictures], of the upright picture (EXIF orientation applied), or of its crop.
        height_px: int32 [pictures], likewise.
        size_bytes: int64 [pictures].
        mtime_ns: int64 [pictures].
        subset_index: int32 [pictures], place in ``subsets``.
        caption_source: uint8 [pictures], ``CAPTION_NONE``, ``CAPTION_FILE`` and so on.
        tags: Caption of each picture as interned tags.
        layout: How the folder was read, in words.
        notes: What a person should know about it, one sentence each.
        history: What was done to it, one line per node.
        skipped: Files and folders that are not used, with the reason.
        crops: int32 [pictures, 4], (left, top, right, bottom) in px of the upright picture, all 0 for the whole
            picture; None as long as nobody set one. Set it with :meth:`with_crops`.
        full_px: int32 [pictures, 2], width and height of the whole upright picture; None without crops.
        masks: "" for none, "alpha" for the picture's own alpha, else a file below the subset's folder or an absolute
            path; None as long as nobody set one.
        focus: float32 [pictures, 2], focal point 0..1 of the (cropped) picture, nan for its centre; None likewise.
        weights: float32 [pictures], factor on the loss; None likewise.
        site_scores: float32 [pictures], score on the site the picture comes from, nan where it is not known; None
            without any.
        site_favourites: int32 [pictures], how many there have marked it, -1 where it is not known; None likewise.
        site_ratings: uint8 [pictures], place in ``RATINGS``; None likewise.
    """

    root: Path
    subsets: tuple[Subset, ...]
    names: TextColumn
    width_px: NDArray[np.int32]
    height_px: NDArray[np.int32]
    size_bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    subset_index: NDArray[np.int32]
    caption_source: NDArray[np.uint8]
    tags: TagColumn
    layout: str
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    crops: NDArray[np.int32] | None = None
    full_px: NDArray[np.int32] | None = None
    masks: TextColumn | None = None
    focus: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None
    site_scores: NDArray[np.float32] | None = None
    site_favourites: NDArray[np.int32] | None = None
    site_ratings: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self.subset_of(index).folder / self.names[index]

    def full_size(self, index: int) -> tuple[int, int]:
        """Width and height of a whole picture in px, whatever its crop."""
        if self.full_px is not None:
            return int(self.full_px[index, 0]), int(self.full_px[index, 1])
        return int(self.width_px[index]), int(self.height_px[index])

    def subset_of(self, index: int) -> Subset:
        """The subset of a picture, with its options."""
        return self.subsets[int(self.subset_index[index])]

    def caption(self, index: int) -> str:
        """The caption as it was read, tags joined by comma and space."""
        return ", ".join(self.tags.row(index))

    def crop(self, index: int) -> Box | None:
        """The part of the upright picture that is used, in px; None for the whole picture."""
        if self.crops is None or not bool(self.crops[index].any()):
            return None
        left, top, right, bottom = self.crops[index].tolist()
        return left, top, right, bottom

    def mask(self, index: int) -> str | Path:
        """The mask's file, "alpha" for the picture's own alpha, or "" for none."""
        text = "" if self.masks is None else self.masks[index]
        return text if text in ("", "alpha") else self.subset_of(index).folder / text

    def focal_point(self, index: int) -> tuple[float, float] | None:
        """The point 0..1 of the (cropped) picture that a bucket's crop keeps; None for the centre."""
        if self.focus is None or bool(np.isnan(self.focus[index]).any()):
            return None
        return float(self.focus[index, 0]), float(self.focus[index, 1])

    def image(self, index: int) -> ImageRow:
        """One row as an object."""
        subset = self.subset_of(index)
        tags = self.tags.row(index)
        return ImageRow(
            path=subset.folder / self.names[index],
            width_px=int(self.width_px[index]),
            height_px=int(self.height_px[index]),
            caption=", ".join(tags),
            tags=tags,
            repeats=subset.repeats,
            is_reg=subset.is_reg,
            subset=subset,
        )

    @property
    def repeats(self) -> NDArray[np.int64]:
        """int64 [pictures], the folders' repeats (before the regularisation rule)."""
        return np.array([subset.repeats for subset in self.subsets], dtype=np.int64)[self.subset_index]

    @property
    def is_reg(self) -> NDArray[np.bool_]:
        """Of dtype bool [pictures], whether a picture is for regularisation."""
        return np.array([subset.is_reg for subset in self.subsets], dtype=np.bool_)[self.subset_index]

    def loss_weights(self, prior_weight: float = 1.0) -> NDArray[np.float64] | None:
        """Factor on the loss of each picture, float64 [pictures]; None when all are 1.

        Args:
            prior_weight: The run's factor for regularisation pictures; their folder's own comes on top.
        """
        by_subset = [
            subset.loss_weight * (prior_weight * subset.prior_weight if subset.is_reg else 1.0)
            for subset in self.subsets
        ]
        weights = np.array(by_subset, dtype=np.float64)[self.subset_index]
        if self.weights is not None:
            weights = weights * self.weights
        return None if bool((weights == 1.0).all()) else weights

    @property
    def nbytes(self) -> int:
        """Memory of the columns in bytes (shared or not), with an estimate for the vocabulary."""
        vocabulary = sum(57 + len(tag) for tag in self.tags.vocabulary)
        columns = (
            self.width_px,
            self.height_px,
            self.size_bytes,
            self.mtime_ns,
            self.subset_index,
            self.caption_source,
            self.names,
            self.tags,
            *self._extras().values(),
            *(() if self.masks is None else (self.masks,)),
        )
        return vocabulary + sum(int(column.nbytes) for column in columns)

    def tag_counts(self) -> dict[str, int]:
        """Tags in use with the number of their occurrences, most frequent first, then by name."""
        counts = self.tags.counts()
        used = [(tag, int(count)) for tag, count in zip(self.tags.vocabulary, counts, strict=True) if count]
        return dict(sorted(used, key=lambda item: (-item[1], item[0])))

    def with_tags(self, rows: Mapping[int, Sequence[str]], *, note: str) -> "Dataset":
        """A copy in which some pictures have other tags.

        Args:
            rows: New tags by picture.
            note: One line for the history.

        Raises:
            InputError: A picture is not in the table.
        """
        self._check_rows(rows)
        return replace(self, tags=self.tags.replaced(rows), history=(*self.history, note))

    def with_tag_column(self, tags: TagColumn, *, note: str) -> "Dataset":
        """A copy with other tags for all pictures.

        Args:
            tags: One row per picture.
            note: One line for the history.

        Raises:
            InputError: It has another number of rows.
        """
        if len(tags) != len(self):
            raise InputError(
                f"tags of {len(tags)} pictures were given for a data set of {len(self)}; give one row each"
            )
        return replace(self, tags=tags, history=(*self.history, note))

    def with_crops(self, crops: NDArray[np.int32], *, note: str) -> "Dataset":
        """A copy in which only a part of each picture is used; a focal point does not outlive it.

        Args:
            crops: int32 [pictures, 4], (left, top, right, bottom) in px of the upright picture; all 0 for all of it.
            note: One line for the history.

        Raises:
            InputError: A crop is empty or not inside its picture.
        """
        full_px = np.stack([self.width_px, self.height_px], axis=1) if self.full_px is None else self.full_px
        crops = np.array(crops, dtype=np.int32).reshape(-1, 4)
        if len(crops) != len(self):
            raise InputError(f"{len(crops)} crops were given for a data set of {len(self)}; give one for each picture")
        whole: NDArray[np.bool_] = ~np.any(crops, axis=1)
        outside = (crops[:, :2] < 0).any(axis=1) | (crops[:, 2:] > full_px).any(axis=1)
        wrong = np.flatnonzero(~whole & (outside | (crops[:, 2:] <= crops[:, :2]).any(axis=1)))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"the crop {tuple(crops[row].tolist())} does not lie in {printable(self.shown(row))}, which is "
                f"{full_px[row, 0]} x {full_px[row, 1]} px; give left, top, right, bottom inside it"
            )
        sizes = np.where(whole[:, None], full_px, crops[:, 2:] - crops[:, :2]).astype(np.int32)
        return replace(
            self,
            width_px=frozen(sizes[:, 0].copy()),
            height_px=frozen(sizes[:, 1].copy()),
            crops=None if bool(whole.all()) else frozen(crops),
            full_px=None if bool(whole.all()) else frozen(full_px),
            focus=None,
            history=(*self.history, note),
        )

    def with_subsets(self, subsets: Sequence[Subset], *, note: str) -> "Dataset":
        """A copy with other options; there must be one subset for each of the old ones, in the same order."""
        if len(subsets) != len(self.subsets):
            raise InputError(
                f"{len(subsets)} subsets were given for a data set of {len(self.subsets)}; give one for each"
            )
        return replace(self, subsets=tuple(subsets), history=(*self.history, note))

    def take(self, rows: Sequence[int], *, note: str) -> "Dataset":
        """A copy with only the given pictures, in the given order."""
        self._check_rows(rows)
        index = np.array(rows, dtype=np.int64)
        extras: dict[str, Any] = {name: frozen(column[index]) for name, column in self._extras().items()}
        return replace(
            self,
            names=self.names.take(index),
            width_px=frozen(self.width_px[index]),
            height_px=frozen(self.height_px[index]),
            size_bytes=frozen(self.size_bytes[index]),
            mtime_ns=frozen(self.mtime_ns[index]),
            subset_index=frozen(self.subset_index[index]),
            caption_source=frozen(self.caption_source[index]),
            tags=self.tags.take(index),
            masks=None if self.masks is None else self.masks.take(index),
            **extras,
            history=(*self.history, note),
        )

    def without(self, reasons: Mapping[int, str]) -> "Dataset":
        """A copy without some pictures (found broken when decoded), which are listed as skipped.

        Raises:
            InputError: No picture for training would be left; the first reasons are named.
        """
        if not reasons:
            return self
        self._check_rows(reasons)
        dropped = tuple(Skipped(path=self.shown(row), reason=reasons[row]) for row in sorted(reasons))
        kept = [row for row in range(len(self)) if row not in reasons]
        result = self.take(kept, note=f"left out {len(dropped)} of {counted(len(self), 'picture')}")
        result = replace(result, skipped=(*self.skipped, *dropped))
        if not np.any(~result.is_reg):
            raise nothing_left(self.root, result.skipped)
        return result

    def joined(self, other: "Dataset", *, note: str) -> "Dataset":
        """A table of this one's pictures with the other's below them; both keep their folders and options."""
        return replace(
            self,
            subsets=(*self.subsets, *other.subsets),
            names=self.names.joined(other.names),
            width_px=frozen(np.concatenate([self.width_px, other.width_px])),
            height_px=frozen(np.concatenate([self.height_px, other.height_px])),
            size_bytes=frozen(np.concatenate([self.size_bytes, other.size_bytes])),
            mtime_ns=frozen(np.concatenate([self.mtime_ns, other.mtime_ns])),
            subset_index=frozen(np.concatenate([self.subset_index, other.subset_index + np.int32(len(self.subsets))])),
            caption_source=frozen(np.concatenate([self.caption_source, other.caption_source])),
            tags=self.tags.joined(other.tags),
            **self._joined_extras(other),
            notes=(*self.notes, *other.notes),
            history=(*self.history, note),
            skipped=(*self.skipped, *other.skipped),
        )

    def fingerprint(self) -> str:
        """Hash of names, file sizes and times, captions and options (32 hexadecimal digits); no file is read."""
        digest = new_digest()
        digest.update(_FINGERPRINT_VERSION)
        for subset in self.subsets:
            digest.update(repr((subset.folder.name, *options_of(subset))).encode("utf-8", "surrogatepass"))
        self.names.update_digest(digest)
        for column in (self.width_px, self.height_px, self.size_bytes, self.mtime_ns, self.subset_index):
            digest.update(column.tobytes())
        self.tags.update_digest(digest)
        self.tags.update_annotations_digest(digest)
        self.update_extras_digest(digest)
        for name, column in self._extras().items():
            if name.startswith("site_"):
                digest.update(name.encode("ascii") + column.tobytes())
        return digest.hexdigest()

    def update_extras_digest(self, digest: Digest) -> None:
        """Adds crops, masks, focal points and weights to a hash, where somebody set them."""
        for name, column in (("crops", self.crops), ("focus", self.focus), ("weights", self.weights)):
            if column is not None:
                digest.update(name.encode("ascii") + column.tobytes())
        if self.masks is not None:
            self.masks.update_digest(digest)

    def _extras(self) -> dict[str, NDArray[Any]]:
        """The numeric columns that somebody set, by name."""
        return {name: getattr(self, name) for name in EXTRAS if getattr(self, name) is not None}

    def summary(self) -> str:
        """How the folder was read, what is in it and what was left out: several lines for a person."""
        from .report import summary

        return summary(self)

    def _joined_extras(self, other: "Dataset") -> dict[str, Any]:
        """The columns that only some data sets have, of both tables."""
        extras: dict[str, Any] = {}
        for name, (dtype, width, fill) in EXTRAS.items():
            parts = (self, other)
            if all(getattr(part, name) is None for part in parts):
                continue
            filled = []
            for part in parts:
                column = getattr(part, name)
                if column is None and name == "full_px":
                    column = np.stack([part.width_px, part.height_px], axis=1)
                elif column is None:
                    column = np.full((len(part), width) if width else len(part), fill, dtype=dtype)
                filled.append(column)
            extras[name] = frozen(np.concatenate(filled))
        if self.masks is not None or other.masks is not None:
            first, second = (
                TextColumn.empty(len(part)) if part.masks is None else part.masks for part in (self, other)
            )
            extras["masks"] = first.joined(second)
        return extras

    def shown(self, index: int) -> str:
        """A picture's name for a person: below the opened folder."""
        folder = self.subset_of(index).folder
        return self.names[index] if folder == self.root else f"{folder.name}/{self.names[index]}"

    def _check_rows(self, rows: Sequence[int] | Mapping[int, object]) -> None:
        for row in rows:
            if not 0 <= row < len(self):
                raise InputError(f"picture {row} is not in the data set, which has {len(self)} (0 to {len(self) - 1})")
