"""kohya's data set configuration, TOML of three levels: ``[general]``, ``[[datasets]]``, ``[[datasets.subsets]]``.

Source: ``docs/config_README-en.md`` and ``library/config_util.py`` of kohya-ss/sd-scripts. A value holds for what lies
below it and the nearest one counts. Folder names are not parsed for repeats, as there. What the file leaves open takes
kohya's default, so that the file means here what it means there.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import FormatError, InputError, StorageError, unknown_name
from ..core.files import storage_error
from .captions import split_tags
from .columns import new_digest
from .folder_scan import ReadOptions
from .identity import fingerprint_folder
from .layout import MAX_REPEATS
from .metadata import Metadata, read_metadata
from .planned import Plan, PlannedSubset
from .sidecars import CAPTION_EXTENSIONS
from .table import Subset
from .walk import is_within

if TYPE_CHECKING:
    from .open_params import DatasetParams

MAX_TOML_BYTES = 8 * 1024 * 1024
_WINDOWS_PATH = re.compile(r"^[A-Za-z]:[\\/]|^\\\\")

SUBSET_KEYS: Mapping[str, tuple[type, ...]] = {
    "num_repeats": (int,),
    "shuffle_caption": (bool,),
    "caption_separator": (str,),
    "keep_tokens": (int,),
    "keep_tokens_separator": (str,),
    "secondary_separator": (str,),
    "caption_prefix": (str,),
    "caption_dropout_rate": (int, float),
    "caption_tag_dropout_rate": (int, float),
    "flip_aug": (bool,),
    "caption_extension": (str,),
    "alpha_mask": (bool,),
}
"""Options that are followed, at any level, with the types of their values."""

OWN_KEYS: Mapping[str, tuple[type, ...]] = {
    "image_dir": (str,),
    "class_tokens": (str,),
    "is_reg": (bool,),
    "metadata_file": (str,),
    "conditioning_data_dir": (str,),
}
"""Options of a subset alone that are followed."""

TRAIN_KEYS = frozenset(
    [
        "resolution",
        "batch_size",
        "enable_bucket",
        "min_bucket_reso",
        "max_bucket_reso",
        "bucket_reso_steps",
        "bucket_no_upscale",
        "token_warmup_min",
        "token_warmup_step",
    ]
)
"""Options of a data set that belong to the training node here."""

OTHER_KEYS = frozenset(
    [
        "caption_suffix",
        "enable_wildcard",
        "color_aug",
        "face_crop_aug_range",
        "random_crop",
        "caption_dropout_every_n_epochs",
        "resize_interpolation",
        "custom_attributes",
        "cache_info",
        "network_multiplier",
        "validation_split",
        "validation_seed",
        "skip_image_resolution",
    ]
)
"""Options of kohya's that this pack does not follow; the report names those that are set."""


def read_toml_plan(path: Path, params: "DatasetParams", *, allowed: Callable[[Path], bool] | None = None) -> Plan:
    """Reads a configuration file.

    Args:
        path: The file, already allowed by the host.
        params: ``repeats`` multiplies the file's, ``class_text`` stands in where it gives no class tokens, and the
            options about reading captions hold; all others come from the file.
        allowed: Says of a real path outside the file's folder whether it may be read.

    Raises:
        FormatError: Not TOML, or not such a configuration; the place and the nearest option are named.
        InputError: A folder is not there, or no subset is given.
        StorageError: The file or a folder cannot be read or is not allowed.
    """
    path = Path(os.path.abspath(path))
    data = _parsed(path)
    for key in data:
        if key not in ("general", "datasets"):
            raise FormatError(f"{path.name}: {unknown_name('table', key, ('general', 'datasets'))}")
    general = _table(path, data.get("general", {}), "[general]")
    reader = _Reader(path=path, params=params, allowed=allowed, ignored={}, training={})
    planned: list[PlannedSubset] = []
    notes: list[str] = []
    for number, entry in enumerate(_tables(path, data.get("datasets", []), "[[datasets]]"), start=1):
        where = f"[[datasets]] {number}"
        inherited = {**reader.checked(general, "[general]"), **reader.checked(entry, where, extra=("subsets",))}
        folders: set[str] = set()
        for place, subset in enumerate(_tables(path, entry.get("subsets", []), f"{where} subsets"), start=1):
            at = f"{where}, subset {place}"
            found = reader.subset({**inherited, **reader.checked(subset, at, own=True)}, at)
            name = os.path.normcase(os.path.realpath(found.subset.folder))
            if name in folders and found.metadata is None:
                notes.append(f"Named twice in one data set, the second time left out as kohya does: {at}.")
                continue
            folders.add(name)
            planned.append(found)
    if not planned:
        raise InputError(f"{path.name} names no folder; add [[datasets]] with [[datasets.subsets]] and image_dir")
    notes += reader.notes()
    text = f"Read {path.name!r} as a kohya configuration of {len(planned)} subsets; options come from it."
    return Plan(root=path.parent, text=text, subsets=tuple(planned), notes=tuple(notes))


def fingerprint_config(
    path: Path, *, allowed: Callable[[Path], bool] | None = None, caption_extension: str = ""
) -> str:
    """Hash of a configuration file, and of names, sizes and times of what it names; no picture is opened.

    Raises:
        AtelierError: As :func:`read_toml_plan`.
    """
    from .open_params import DatasetParams

    plan = read_toml_plan(path, DatasetParams(), allowed=allowed)
    parts = [path.read_text(encoding="utf-8-sig")]
    for planned in plan.subsets:
        parts.append(
            fingerprint_folder(planned.subset.folder, allowed=allowed, caption_extension=planned.read.endings[0])
        )
        if planned.metadata is not None:
            status = planned.metadata.path.stat()
            parts.append(f"{status.st_size} {status.st_mtime_ns}")
        if isinstance(planned.mask, Path):
            parts.append(fingerprint_folder(planned.mask, allowed=allowed))
    digest = new_digest()
    digest.update("\0".join([*parts, caption_extension]).encode("utf-8"))
    return digest.hexdigest()


@dataclass
class _Reader:
    path: Path
    params: "DatasetParams"
    allowed: Callable[[Path], bool] | None
    ignored: dict[str, Any]
    training: dict[str, Any]

    def checked(
        self, table: Mapping[str, Any], where: str, *, own: bool = False, extra: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The options of one table that are followed, checked for their types; the others are noted."""
        known = {**SUBSET_KEYS, **(OWN_KEYS if own else {})}
        result: dict[str, Any] = {}
        for key, value in table.items():
            if key in extra:
                continue
            if key in TRAIN_KEYS:
                self.training[key] = value
            elif key in OTHER_KEYS:
                self.ignored[key] = value
            elif key not in known:
                raise FormatError(f"{self.path.name}, {where}: {unknown_name('option', key, [*known, *OTHER_KEYS])}")
            else:
                result[key] = self._typed(key, value, known[key], where)
        return result

    def _typed(self, key: str, value: Any, types: tuple[type, ...], where: str) -> Any:
        if type(value) not in types:
            words = {int: "a whole number", bool: "true or false", str: "a text", float: "a number"}[types[-1]]
            raise FormatError(f"{self.path.name}, {where}: {key} is {value!r}, allowed is {words}")
        ranges = {"num_repeats": (1, MAX_REPEATS), "keep_tokens": (0, 1000)}
        low, high = ranges.get(key, (0, 1))
        if types[0] is int and not low <= value <= high:
            raise FormatError(f"{self.path.name}, {where}: {key} is {value}, allowed is {low} to {high}")
        return value

    def subset(self, options: Mapping[str, Any], where: str) -> PlannedSubset:
        metadata = self._metadata(options, where)
        folder = self._folder(options.get("image_dir"), metadata, where)
        separator = options.get("caption_separator", ",").strip() or " "
        read = self.params.read_options()
        ending = options.get("caption_extension", ".caption").lower()
        endings = tuple(dict.fromkeys((ending, *read.endings, *CAPTION_EXTENSIONS)))
        read = ReadOptions(
            endings=endings,
            separator=read.separator if separator == "," else separator,
            site_tags=read.site_tags,
            site_ratings=read.site_ratings,
            verify=read.verify,
        )
        tokens = options.get("class_tokens", "")
        subset = Subset(
            folder=folder,
            concept=tokens,
            repeats=options.get("num_repeats", 1) * self.params.repeats,
            is_reg=options.get("is_reg", False),
            shuffle_captions=options.get("shuffle_caption", False),
            keep_tokens=options.get("keep_tokens", 0),
            caption_prefix=", ".join(split_tags(options.get("caption_prefix", ""))),
            caption_dropout=float(options.get("caption_dropout_rate", 0.0)),
            tag_dropout=float(options.get("caption_tag_dropout_rate", 0.0)),
            flip=options.get("flip_aug", False),
            keep_tokens_separator=options.get("keep_tokens_separator", "").strip(),
            secondary_separator=options.get("secondary_separator", "").strip(),
        )
        mask: str | Path = "alpha" if options.get("alpha_mask", False) else ""
        if "conditioning_data_dir" in options:
            mask = self._allowed_folder(options["conditioning_data_dir"], "conditioning_data_dir", where)
        return PlannedSubset(
            subset=subset,
            read=read,
            recursive=metadata is not None and "image_dir" not in options,
            text=tokens or self.params.class_text,
            metadata=metadata,
            metadata_first=metadata is not None,
            only_listed=metadata is not None,
            mask=mask,
        )

    def _metadata(self, options: Mapping[str, Any], where: str) -> Metadata | None:
        if "metadata_file" not in options:
            return None
        file = self._allowed(options["metadata_file"], "metadata_file", where)
        if not file.is_file():
            raise InputError(f"{self.path.name}, {where}: metadata_file {str(file)!r} does not exist; check the name")
        return read_metadata(file)

    def _folder(self, given: str | None, metadata: Metadata | None, where: str) -> Path:
        if given is not None:
            return self._allowed_folder(given, "image_dir", where)
        if metadata is None:
            raise FormatError(f"{self.path.name}, {where}: image_dir is missing; name the folder with the pictures")
        folders = {name.rpartition("/")[0] for name in metadata.names}
        try:
            common = os.path.commonpath(sorted(folders)) if folders else ""
        except ValueError:  # some whole paths and some not, or two drives
            common = ""
        if not common:
            raise FormatError(
                f"{self.path.name}, {where}: {metadata.path.name} names pictures without one folder in common; give "
                "image_dir"
            )
        return self._allowed_folder(common, "the folder of the metadata file's pictures", where)

    def _allowed_folder(self, given: str, what: str, where: str) -> Path:
        folder = self._allowed(given, what, where)
        if not folder.is_dir():
            raise InputError(
                f"{self.path.name}, {where}: {what} {given!r} is not a folder ({folder}); check the name, and where it "
                "lies"
            )
        return folder

    def _allowed(self, given: str, what: str, where: str) -> Path:
        if "\0" in given:
            raise FormatError(f"{self.path.name}, {where}: {what} holds a NUL character; type it anew")
        if os.name != "nt" and _WINDOWS_PATH.match(given):
            raise InputError(
                f"{self.path.name}, {where}: {what} {given!r} is a Windows path and this machine is not Windows; write "
                "the folder's place on this machine"
            )
        target = Path(os.path.abspath(self.path.parent / given))
        real = os.path.realpath(target)
        inside = is_within(real, os.path.realpath(self.path.parent))
        if not inside and not (self.allowed is not None and self.allowed(Path(real))):
            raise StorageError(
                f"{self.path.name}, {where}: {what} {given!r} lies outside the allowed folders; move it below one of "
                'them, or let the owner of this machine add its folder to the list "roots" in the settings file'
            )
        return target

    def notes(self) -> list[str]:
        """What the file asks for that is set elsewhere, or not followed."""
        result = []
        if self.training:
            listed = ", ".join(f"{key} = {value}" for key, value in self.training.items())
            result.append(f"Set in the training node, not taken from the file: {listed}.")
        used = {key: value for key, value in self.ignored.items() if value not in (False, 0, "", None)}
        if used:
            result.append(f"Not followed: {', '.join(f'{key} = {value}' for key, value in used.items())}.")
        return result


def _parsed(path: Path) -> dict[str, Any]:
    tomllib = _tomllib()
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_TOML_BYTES:
            raise FormatError(f"{path.name} is larger than 8 MiB; that is no data set configuration")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as cause:
        raise storage_error("read", path, cause) from cause
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path.name} is not UTF-8 text; save it as UTF-8") from cause
    try:
        result: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:  # TOMLDecodeError is a ValueError
        raise FormatError(f"{path.name} is not valid TOML: {cause}") from cause
    return result


def _tomllib() -> Any:
    """Python's own reader, which came with 3.11, or the same as a library of its own."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def _table(path: Path, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{path.name}: {where} is {type(value).__name__}, it must be a table")
    return value


def _tables(path: Path, value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise FormatError(f"{path.name}: {where} must be a list of tables, written with double brackets")
    return value
