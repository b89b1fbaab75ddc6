"""What a folder or a configuration file comes to: the subsets to read, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .folder_scan import ReadOptions
from .images import is_picture_name
from .metadata import Metadata
from .table import Skipped, Subset
from .walk import Listing


@dataclass(frozen=True, kw_only=True)
class PlannedSubset:
    """A folder that becomes a subset.

    Attributes:
        subset: Its options.
        read: How its captions are read.
        recursive: Whether its sub-folders are read too.
        text: Caption of pictures that have none.
        metadata: File with captions that was asked for; None for none.
        metadata_first: Whether it counts more than a picture's own caption file.
        only_listed: Whether pictures that it does not name are left out.
        mask: What the pictures' masks are: "", "alpha", or a folder with files of the same names.
    """

    subset: Subset
    read: ReadOptions
    recursive: bool = True
    text: str = ""
    metadata: Metadata | None = None
    metadata_first: bool = False
    only_listed: bool = False
    mask: str | Path = ""

    @cached_property
    def mask_files(self) -> Mapping[str, str]:
        """Files of the masks' folder by their stems, as they are when first asked for."""
        if not isinstance(self.mask, Path):
            return {}
        return {entry.stem: str(entry) for entry in sorted(self.mask.iterdir()) if is_picture_name(entry.name)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is read.

    Attributes:
        root: The folder that was opened, or that of the configuration file.
        text: How it was understood, in words for a person.
        subsets: In their order.
        is_kohya: Whether repeat counts come from folder names.
        notes: What a person should know about it.
        skipped: What is left out, with the reason.
        listings: Folders that were listed on the way.
    """

    root: Path
    text: str
    subsets: tuple[PlannedSubset, ...]
    is_kohya: bool = False
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    listings: Mapping[Path, Listing] = field(default_factory=dict)
