"""The folders of the local host: one working directory laid out like ComfyUI's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import FormatError
from ...core.files import read_json, storage_error
from ...core.roots import Roots
from .protocol import SETTINGS_FILE
from .shared import CHECKPOINT_SUFFIXES, extra_roots

MODEL_KINDS = ("checkpoints", "loras", "taggers", "detectors")
DEFAULT_BASE_DIR = Path("atelier")


@dataclass(frozen=True)
class LocalFolders:
    """Where the local host reads and writes.

    ``input/ output/ temp/ datasets/ user/`` and ``models/`` with a folder per kind of model below ``base_dir``. The
    owner's ``user/atelier/settings.json`` may add data set folders (key ``roots``) and further folders laid out like
    ``models/`` (key ``models``, for example those of a ComfyUI).
    """

    base_dir: Path

    def make(self) -> None:
        """Make the folders that are missing.

        Raises:
            StorageError: one cannot be made.
        """
        kinds = [self.base_dir / "models" / kind for kind in MODEL_KINDS]
        for folder in (self.input, self.output, self.temp, self.datasets, self.user, *kinds):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as cause:
                raise storage_error("make the folder", folder, cause) from cause

    @property
    def input(self) -> Path:
        """Pictures and data sets to work on."""
        return self.base_dir / "input"

    @property
    def output(self) -> Path:
        """Finished results."""
        return self.base_dir / "output"

    @property
    def temp(self) -> Path:
        """Previews."""
        return self.base_dir / "temp"

    @property
    def datasets(self) -> Path:
        """Data sets."""
        return self.base_dir / "datasets"

    @property
    def user(self) -> Path:
        """The owner's settings."""
        return self.base_dir / "user" / "atelier"

    def models(self, kind: str) -> list[Path]:
        """Folders of one kind of model, the own one first."""
        return [self.base_dir / "models" / kind, *(folder / kind for folder in self._extra_models())]

    def _extra_models(self) -> list[Path]:
        path = self.user / SETTINGS_FILE
        if not path.is_file():
            return []
        settings = read_json(path)
        folders = settings.get("models", []) if isinstance(settings, dict) else None
        if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
            raise FormatError(f'{path}: the key "models" must hold a list of folder names, like ["D:/ComfyUI/models"].')
        return [Path(folder).expanduser() for folder in folders if Path(folder).expanduser().is_dir()]

    def roots(self) -> Roots:
        """The folders a workflow may name things in."""
        return Roots(
            folders={
                "input": (self.input,),
                "output": (self.output,),
                "datasets": (self.datasets,),
                "models": tuple(folder for kind in MODEL_KINDS for folder in self.models(kind)),
                "extra": extra_roots(self.user),
            },
            settings_file=self.user / SETTINGS_FILE,
        )


def weight_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Safetensors files below the folders by relative name with forward slashes, sorted; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for parent, subfolders, names in os.walk(folder, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in names:
                if name.lower().endswith(CHECKPOINT_SUFFIXES) and not name.startswith("."):
                    path = Path(parent) / name
                    found.setdefault(path.relative_to(folder).as_posix(), path)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
