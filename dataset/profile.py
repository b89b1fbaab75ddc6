"""A profile as a careful trainer keeps of each data set: pictures, what they show, tags by category, steps."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.params import param
from .batches import effective_repeats, steps_per_epoch
from .columns import CATEGORIES
from .normal import normals
from .table import CAPTION_FILE, CAPTION_FOLDER, CAPTION_NONE
from .tiers import BucketParams, fit_facts, measure, some_pictures
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

_COLOURS = "white|black|grey|gray|red|blue|green|yellow|orange|purple|pink|brown|beige|aqua|tan"
SUBJECTS: Mapping[str, re.Pattern[str]] = {
    "text or symbols": re.compile(
        r"(^|.* )(text|symbol|logo|watermark|signature|speech bubble|thought bubble|dialogue|subtitled|artist name|"
        r"web address|url|username|dated|sign|sound effects)$"
    ),
    "simple background": re.compile(
        rf"(simple|plain|transparent|gradient|monotone|two-tone|solid color|({_COLOURS}))[ -]background"
    ),
    "face in focus": re.compile(r"(portrait|close-up|face|face focus|headshot|head only|headshot portrait)"),
    "sketch or monochrome": re.compile(
        r"(sketch|line ?art|monochrome|gr[ae]yscale|unfinished|rough|concept art|uncolored)"
    ),
}
"""What a share of the pictures shows, by a look at their tags (in normal form)."""

_ONE = re.compile(r"1 ?(girl|boy|other|male|female)")
_SEVERAL = re.compile(
    r"([2-9]\+?|[1-9]\d+) ?(girl|boy|other|male|female)s?|multiple (girls|boys|others|people)|"
    r"duo|trio|group|couple|crowd"
)
_ALONE = frozenset(["solo", "solo focus"])


@dataclass(frozen=True, kw_only=True)
class ProfileParams(BucketParams):
    """What the profile reckons with."""

    epochs: int = param(
        10, doc="Epochs of the run, for the number of steps.", unit="epochs", minimum=1, maximum=100_000, step=1
    )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A data set in figures.

    Attributes:
        name: Of its folder.
        pictures: Training pictures.
        reg_pictures: Regularisation pictures.
        subjects: Share of the training pictures by what they show.
        single_subject: Share with one subject.
        tags: Different tags by category, ``total`` first.
        tags_per_picture: (mean, least, most).
        seen_per_epoch: Pictures per epoch after repeats, regularisation included.
        epochs: Epochs of the run.
        steps: Steps of the run, with the batches that are not full.
        batch_size: Pictures per step.
        facts: Tiers, crop loss and buckets in words.
        size_range_px: ((width, height) of the smallest, of the largest picture).
        gibibytes: Size on disk.
        captions: Where captions came from, by name.
        with_focus: Pictures with a focal point.
        with_crop: Pictures of which a part is used.
        with_mask: Pictures with a mask.
        folders: (name, pictures, repeats, seen per epoch, for regularisation).
    """

    name: str
    pictures: int
    reg_pictures: int
    subjects: Mapping[str, float]
    single_subject: float
    tags: Mapping[str, int]
    tags_per_picture: tuple[float, int, int]
    seen_per_epoch: int
    epochs: int
    steps: int
    batch_size: int
    facts: tuple[str, ...]
    size_range_px: tuple[tuple[int, int], tuple[int, int]]
    gibibytes: float
    captions: Mapping[str, int]
    with_focus: int
    with_crop: int
    with_mask: int
    folders: tuple[tuple[str, int, int, int, bool], ...]

    def rows(self) -> list[tuple[str, str]]:
        """The profile as (what, figure) pairs."""
        reg = f" + {self.reg_pictures} for regularisation" if self.reg_pictures else ""
        mean, least, most = self.tags_per_picture
        (small, large) = self.size_range_px
        rows = [
            ("pictures", f"{self.pictures}{reg}, {self.gibibytes:.2f} GiB"),
            ("sizes", f"{small[0]} x {small[1]} to {large[0]} x {large[1]} px"),
            ("single subject", f"{self.single_subject:.0%}"),
            *((name, f"{share:.0%}") for name, share in self.subjects.items()),
            (
                "tags total / species / general",
                "/".join(str(self.tags[name]) for name in ("total", "species", "general")),
            ),
            (
                "tags by category",
                ", ".join(f"{name} {count}" for name, count in self.tags.items() if count and name != "total"),
            ),
            ("tags per picture", f"mean {mean:.1f}, {least} to {most}"),
            ("captions", ", ".join(f"{count} {name}" for name, count in self.captions.items() if count)),
            (
                "steps",
                f"{self.seen_per_epoch} pictures x {counted(self.epochs, 'epoch')} at batch size {self.batch_size} = "
                f"{self.steps} steps",
            ),
            ("fit", "; ".join(self.facts)),
        ]
        marks = (("focal points", self.with_focus), ("crops", self.with_crop), ("masks", self.with_mask))
        rows += [(name, counted(count, "picture")) for name, count in marks if count]
        return rows

    def text(self) -> str:
        """The profile as a table of text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [
            f"Data set profile: {printable(self.name)}",
            *(f"  {name:<{width}}  {figure}" for name, figure in rows),
        ]
        lines += ["", "  pictures  repeats   seen  folder"]
        lines += [
            f"  {pictures:>8} {repeats:>8} {seen:>6}  {printable(name)}{' (regularisation)' if is_reg else ''}"
            for name, pictures, repeats, seen, is_reg in self.folders
        ]
        return "\n".join(lines)

    def table(self) -> list[list[str]]:
        """The profile as rows of a drawn table, a header first."""
        return [["", self.name], *([name, figure] for name, figure in self.rows())]

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        mean, least, most = self.tags_per_picture
        return {
            "format": "atelier-profile-1",
            "name": self.name,
            "pictures": self.pictures,
            "reg_pictures": self.reg_pictures,
            "shares": {"single subject": self.single_subject, **self.subjects},
            "tags": dict(self.tags),
            "tags_per_picture": {"mean": mean, "least": least, "most": most},
            "seen_per_epoch": self.seen_per_epoch,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "fit": list(self.facts),
            "sizes_px": [list(size) for size in self.size_range_px],
            "gibibytes": self.gibibytes,
            "captions": dict(self.captions),
            "focal_points": self.with_focus,
            "crops": self.with_crop,
            "masks": self.with_mask,
            "folders": [
                {"name": name, "pictures": pictures, "repeats": repeats, "seen": seen, "is_reg": is_reg}
                for name, pictures, repeats, seen, is_reg in self.folders
            ],
        }


def profile_of(dataset: "Dataset", params: ProfileParams) -> Profile:
    """Counts everything that needs no decoding.

    Args:
        dataset: The table.
        params: Resolution, batch size and epochs of the run.

    Raises:
        InputError: The resolution does not fit the buckets, or there is no picture for training.
    """
    some_pictures(dataset)
    train = ~dataset.is_reg
    fits = measure(dataset, params.rule())
    areas = dataset.width_px.astype(np.int64) * dataset.height_px
    small, large = int(np.argmin(areas)), int(np.argmax(areas))
    seen = effective_repeats(dataset)
    sources = np.bincount(dataset.caption_source, minlength=3)
    lengths = dataset.tags.lengths[train]
    forms = np.array(normals(dataset.tags.vocabulary), dtype=object)
    return Profile(
        name=dataset.root.name,
        pictures=int(train.sum()),
        reg_pictures=int((~train).sum()),
        subjects={name: _share(_rows(dataset, forms, pattern), train) for name, pattern in SUBJECTS.items()},
        single_subject=_share(_single(dataset, forms), train),
        tags=_categories(dataset, train),
        tags_per_picture=(float(lengths.mean()), int(lengths.min()), int(lengths.max()))
        if len(lengths)
        else (0.0, 0, 0),
        seen_per_epoch=int(seen.sum()),
        epochs=params.epochs,
        steps=steps_per_epoch(dataset, fits.buckets, params.batch_size) * params.epochs,
        batch_size=params.batch_size,
        facts=fit_facts(dataset, fits, params),
        size_range_px=(_size(dataset, small), _size(dataset, large)),
        gibibytes=float(dataset.size_bytes.sum()) / 2**30,
        captions={
            "from their own file": int(sources[CAPTION_FILE]),
            "from the folder's name": int(sources[CAPTION_FOLDER]),
            "none": int(sources[CAPTION_NONE]),
        },
        with_focus=0 if dataset.focus is None else int((~np.isnan(dataset.focus).any(axis=1)).sum()),
        with_crop=0 if dataset.crops is None else int(dataset.crops.any(axis=1).sum()),
        with_mask=0 if dataset.masks is None else sum(bool(mask) for mask in dataset.masks),
        folders=_folders(dataset, seen),
    )


def _share(rows: NDArray[np.bool_], train: NDArray[np.bool_]) -> float:
    return float(rows[train].mean()) if train.any() else 0.0


def _rows(dataset: "Dataset", forms: NDArray[Any], pattern: re.Pattern[str]) -> NDArray[np.bool_]:
    """Whether a picture has a tag that fits, bool [pictures]."""
    wanted = np.array([pattern.fullmatch(form) is not None for form in forms], dtype=bool)
    return _any_of(dataset, wanted)


def _any_of(dataset: "Dataset", wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.bincount(_holders(dataset, wanted), minlength=len(dataset)) > 0


def _holders(dataset: "Dataset", wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    places = np.flatnonzero(wanted[dataset.tags.ids]) if len(wanted) else np.zeros(0, dtype=np.int64)
    return np.searchsorted(dataset.tags.offsets, places, side="right") - 1


def _single(dataset: "Dataset", forms: NDArray[Any]) -> NDArray[np.bool_]:
    """Pictures tagged solo, or with exactly one person and no tag for several."""
    alone = _any_of(dataset, np.array([form in _ALONE for form in forms], dtype=bool))
    ones = np.bincount(
        _holders(dataset, np.array([_ONE.fullmatch(form) is not None for form in forms], dtype=bool)),
        minlength=len(dataset),
    )
    several = _rows(dataset, forms, _SEVERAL)
    return np.asarray(alone | ((ones == 1) & ~several), dtype=np.bool_)


def _categories(dataset: "Dataset", train: NDArray[np.bool_]) -> dict[str, int]:
    column = dataset.tags.take(np.flatnonzero(train))
    used = column.counts() > 0
    per = np.bincount(column.categories[used], minlength=len(CATEGORIES))
    named = {name: int(per[place]) for place, name in enumerate(CATEGORIES) if name}
    return {"total": int(used.sum()), **named, "not known": int(per[0])}


def _size(dataset: "Dataset", row: int) -> tuple[int, int]:
    return int(dataset.width_px[row]), int(dataset.height_px[row])


def _folders(dataset: "Dataset", seen: NDArray[np.int64]) -> tuple[tuple[str, int, int, int, bool], ...]:
    pictures = np.bincount(dataset.subset_index, minlength=len(dataset.subsets))
    per_folder = np.bincount(dataset.subset_index, weights=seen, minlength=len(dataset.subsets))
    return tuple(
        (subset.folder.name, int(pictures[number]), subset.repeats, int(per_folder[number]), subset.is_reg)
        for number, subset in enumerate(dataset.subsets)
    )
