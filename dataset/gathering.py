"""From folders as they were read to one table: captions for pictures that have none, masks, notes for a person."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import AtelierError
from .captions import split_tags
from .columns import TagColumn, TextColumn, frozen
from .metadata import METADATA_NAMES, Metadata, read_metadata
from .normal import KAOMOJI
from .planned import Plan, PlannedSubset
from .snapshots import FolderPart
from .table import CAPTION_FOLDER, CAPTION_METADATA, CAPTION_NONE, Dataset, Skipped
from .walk import Listing
from .words import counted


@dataclass
class Gathered:
    """What is gathered while a plan is read."""

    skipped: list[Skipped]
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    other_endings: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    site: list[NDArray[np.float64]] = field(default_factory=list)
    sources: list[NDArray[np.uint8]] = field(default_factory=list)
    subset_index: list[NDArray[np.int32]] = field(default_factory=list)
    tags: list[TagColumn] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    metadata: dict[Path, Metadata | None] = field(default_factory=dict)

    def skip(self, path: str, reason: str) -> None:
        """Lists something that is not used."""
        self.skipped.append(Skipped(path=path, reason=reason))


def add_folder(
    part: FolderPart, number: int, planned: PlannedSubset, listing: Listing, plan: Plan, scan: Gathered
) -> None:
    """Adds one folder's pictures to what is gathered, with captions for those that have none of their own."""
    shown = shown_prefix(plan.root, planned.subset.folder)
    for name, reason in part.skipped:
        scan.skip(shown + listing.below(name), reason)
    scan.counts.update(part.counts)
    scan.forms.update(part.forms)
    scan.other_endings.update(part.other_endings)
    if not len(part.names):
        return
    names = list(part.names)
    below = [listing.below(name) for name in names] if listing.relative else names
    tags, sources = part.tags, part.caption_source
    if planned.metadata is not None or bool((sources == CAPTION_NONE).any()):
        tags, sources = _with_fallbacks(tags, sources, below, planned, scan)
    rows = np.arange(len(names), dtype=np.int64)
    if planned.only_listed and planned.metadata is not None:
        rows = np.flatnonzero(sources == CAPTION_METADATA)
        scan.counts["not in the metadata file"] += len(names) - len(rows)
    if listing.relative:
        scan.counts["nested"] += len(rows)
    scan.names += [below[row] for row in rows.tolist()]
    scan.numbers.append(part.numbers[rows])
    scan.site.append(part.site[rows])
    scan.sources.append(sources[rows])
    scan.subset_index.append(np.full(len(rows), number, dtype=np.int32))
    scan.tags.append(tags if len(rows) == len(names) else tags.take(rows))
    scan.masks += [_mask_of(planned, below[row]) for row in rows.tolist()]


def _with_fallbacks(
    tags: TagColumn,
    sources: NDArray[np.uint8],
    names: list[str],
    planned: PlannedSubset,
    scan: Gathered,
) -> tuple[TagColumn, NDArray[np.uint8]]:
    """Captions from a metadata file, and the text of the folder for what is left without one."""
    sources = sources.copy()
    metadata = planned.metadata
    if metadata is None:
        metadata = _metadata_in(planned.subset.folder, scan)
    if metadata is not None:
        wanted = range(len(names)) if planned.metadata_first else np.flatnonzero(sources == CAPTION_NONE).tolist()
        given = {row: metadata.find(planned.subset.folder, names[row]) for row in wanted}
        found = {row: split_tags(caption) for row, caption in given.items() if caption is not None}
        tags = tags.replaced(found)
        sources[list(found)] = CAPTION_METADATA
        scan.forms[f"from {metadata.path.name}"] += len(found)
    bare = np.flatnonzero(sources == CAPTION_NONE)
    text = split_tags(planned.text)
    if text and len(bare):
        tags = tags.with_vocabulary(text)
        ids = np.array([tags.id_of(tag) for tag in text], dtype=np.int32)
        tags = tags.with_tags(np.repeat(bare, len(ids)), np.tile(ids, len(bare)))
        sources[bare] = CAPTION_FOLDER
    return tags, sources


def _metadata_in(folder: Path, scan: Gathered) -> Metadata | None:
    """The first metadata file in a subset's folder that can be read; what is wrong with others is noted."""
    known = scan.metadata
    if folder not in known:
        known[folder] = None
        for name in METADATA_NAMES:
            path = folder / name
            if path.is_file() and not path.is_symlink():
                try:
                    known[folder] = read_metadata(path)
                    break
                except AtelierError as refusal:
                    scan.notes.append(f"Not used: {refusal}.")
    return known[folder]


def _mask_of(planned: PlannedSubset, name: str) -> str:
    if not planned.mask or planned.mask == "alpha":
        return str(planned.mask)
    return str(planned.mask_files.get(os.path.splitext(name.rpartition("/")[2])[0], ""))


def dataset_of(plan: Plan, scan: Gathered, *, spaces: bool) -> Dataset:
    """The table of what was gathered; with blanks for underscores where that is asked for."""
    # Folders without a usable picture are left out of the table, and the numbers of the others close up.
    used, subset_index = np.unique(np.concatenate(scan.subset_index), return_inverse=True)
    numbers, site = np.concatenate(scan.numbers), np.concatenate(scan.site)
    tags = scan.tags[0] if len(scan.tags) == 1 else TagColumn.concatenated(scan.tags)
    extras: dict[str, Any] = {}
    if not bool(np.isnan(site[:, 0]).all()):
        extras["site_scores"] = frozen(site[:, 0].astype(np.float32))
    if bool((site[:, 1] >= 0).any()):
        extras["site_favourites"] = frozen(site[:, 1].astype(np.int32))
    if bool(site[:, 2].any()):
        extras["site_ratings"] = frozen(site[:, 2].astype(np.uint8))
    if any(scan.masks):
        extras["masks"] = TextColumn.from_strings(scan.masks)
    return Dataset(
        root=plan.root,
        subsets=tuple(plan.subsets[number].subset for number in used),
        names=TextColumn.from_strings(scan.names),
        width_px=frozen(numbers[:, 0].astype(np.int32)),
        height_px=frozen(numbers[:, 1].astype(np.int32)),
        size_bytes=frozen(numbers[:, 2].copy()),
        mtime_ns=frozen(numbers[:, 3].copy()),
        subset_index=frozen(subset_index.reshape(-1).astype(np.int32)),
        caption_source=frozen(np.concatenate(scan.sources)),
        tags=_spaced(tags) if spaces else tags,
        layout=plan.text,
        notes=tuple([*scan.notes, *_notes(plan, scan)]),
        history=(f"opened {plan.root.name!r}",),
        skipped=tuple(scan.skipped),
        **extras,
    )


def _spaced(tags: TagColumn) -> TagColumn:
    """Blanks in place of underscores, except in faces."""
    names = [tag if tag in KAOMOJI else " ".join(tag.replace("_", " ").split()) or tag for tag in tags.vocabulary]
    place: dict[str, int] = {}
    table = np.array([place.setdefault(name, len(place)) for name in names], dtype=np.int32)
    return tags.translated(table, tuple(place))


def _notes(plan: Plan, scan: Gathered) -> Iterator[str]:
    counts = scan.counts
    if scan.forms:
        yield (
            "Captions were read as: " + "; ".join(f"{form}: {count}" for form, count in scan.forms.most_common()) + "."
        )
    if plan.is_kohya and counts["nested"]:
        yield f"In sub-folders of N_name folders, and taken with them: {counted(counts['nested'], 'picture')}."
    if counts["empty captions"]:
        yield f"Empty: {counted(counts['empty captions'], 'caption file')}; trained without a caption."
    if counts["captions of several lines"]:
        yield f"Of several lines, of which the first counts: {counted(counts['captions of several lines'], 'caption')}."
    if counts["shared captions"]:
        shared = counted(counts["shared captions"], "picture")
        yield f"Sharing a caption file with another of the same name (1.png, 1.jpg): {shared}."
    if counts["JSON files without tags"]:
        yield f"Without tags in them, and not used: {counted(counts['JSON files without tags'], 'JSON file')}."
    if counts["unreadable JSON files"]:
        damaged = counted(counts["unreadable JSON files"], "JSON file")
        yield f"Damaged, and not used beside captions: {damaged}."
    if counts["not in the metadata file"]:
        yield f"Not named in the metadata file, and left out: {counted(counts['not in the metadata file'], 'picture')}."
    if counts["transparent"]:
        yield f"With transparency, under which white is laid: {counted(counts['transparent'], 'picture')}."
    if scan.other_endings:
        endings = ", ".join(f"{count} {ending}" for ending, count in scan.other_endings.most_common(8))
        yield f"Files of other kinds are not read: {endings}."


def shown_prefix(root: Path, folder: Path) -> str:
    """What goes in front of a name in a subset to give its path below the opened folder."""
    if folder == root:
        return ""
    return (folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name) + "/"
