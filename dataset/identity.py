"""What makes two data sets the same: a cheap fingerprint of a folder, and a hash of what a training run sees."""

import os
from collections.abc import Callable
from pathlib import Path

from ..core.progress import Progress, SilentProgress
from .columns import new_digest
from .images import content_hash, is_picture_name
from .metadata import METADATA_NAMES
from .sidecars import CAPTION_EXTENSIONS
from .table import Dataset, options_of
from .walk import Guard, Listing, walk_folder

_VERSION = b"atelier-content-1"
_UPDATE_EVERY = 16


def fingerprint_folder(
    folder: Path | str, *, allowed: Callable[[Path], bool] | None = None, caption_extension: str = ""
) -> str:
    """Hash of names, sizes and times of all pictures and captions below a folder (32 hexadecimal digits).

    Nothing is opened, so it is cheap enough to be asked before every run; an edited, added, renamed or removed picture
    or caption changes it. A folder that is not there has the fingerprint ``"missing"``.

    Args:
        folder: The folder.
        allowed: As for ``open_folder``: links are followed out of the folder only where it says so.
        caption_extension: Ending of caption files besides the usual ones; empty for none.
    """
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        return "missing"
    endings = {*CAPTION_EXTENSIONS, ".tags", ".jsonl", caption_extension.lower()} - {""}
    digest = new_digest()

    def note_refusal(path: str, reason: str) -> None:
        digest.update(f"{path}\0{reason}\0".encode("utf-8", "surrogatepass"))

    digest.update(root.name.encode("utf-8", "surrogatepass"))
    for listing in walk_folder(root, guard=Guard(root, allowed), on_skip=note_refusal, recursive=True):
        digest.update(f"\0{listing.relative}/\0".encode())
        stems: set[str] | None = None
        for entry in listing.files:
            ending = os.path.splitext(entry.name)[1].lower()
            counts = ending in endings or is_picture_name(entry.name)
            if ending == ".json" and not counts:
                stems = _stems(listing) if stems is None else stems
                counts = _is_metadata(entry.name, stems)
            if counts:
                digest.update(f"{entry.name}\0{entry.size_bytes}\0{entry.mtime_ns}\0".encode())
        for name in listing.folders:
            digest.update(name.encode("utf-8", "surrogatepass") + b"/\0")
    return digest.hexdigest()


def _stems(listing: Listing) -> set[str]:
    """Names of a folder's pictures with and without their ending."""
    names = [entry.name for entry in listing.files if is_picture_name(entry.name)]
    return {*names, *(os.path.splitext(name)[0] for name in names)}


def _is_metadata(name: str, stems: set[str]) -> bool:
    """Whether a JSON file says something about pictures of its folder."""
    stem = os.path.splitext(name)[0]
    return name in METADATA_NAMES or stem in stems or stem.removeprefix(".").removesuffix("_meta") in stems


def content_fingerprint(dataset: Dataset, *, progress: Progress | None = None) -> str:
    """Hash of everything in a data set that decides what is learnt (32 hexadecimal digits).

    The bytes of the pictures, their order, captions and options; not where they lie, their names or times. Reads every
    picture that this process has not read before.

    Raises:
        BadPicture: A picture is gone or cannot be read.
    """
    progress = progress or SilentProgress()
    digest = new_digest()
    digest.update(_VERSION)
    for subset in dataset.subsets:
        digest.update(repr(options_of(subset)).encode("utf-8", "surrogatepass"))
    digest.update(dataset.subset_index.tobytes())
    for row in range(len(dataset)):
        if row % _UPDATE_EVERY == 0:
            progress.update(row, len(dataset), "Hashing pictures")
        digest.update(bytes.fromhex(content_hash(dataset.path(row))))
    dataset.tags.update_digest(digest)
    dataset.update_extras_digest(digest)
    return digest.hexdigest()
