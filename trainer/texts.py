"""What captions say to the network: encoded at every step, or once and kept in memory and on disk."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from ..core.errors import StorageError
from ..core.files import ensure_space
from ..core.progress import Progress, SilentProgress
from ..core.shards import KEY_BYTES, DamagedShard, Shards
from ..families._spec import Components, Family, TextOptions, TextState
from ..families._windows import same_length
from .held import Held

TEXT_BYTES = 2 * 2**30
TEXTS_QUOTA_BYTES = 16 * 2**30
TEXTS_FOLDER = "text-shards"
TEXT_CACHE_VERSION = 1
ROW_BYTES = 64
"""A row's key and checksum, rounded up."""


class Texts(Protocol):
    """Turns captions into what the network is told."""

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns the states of a batch of captions."""
        ...


class LiveTexts:
    """Encodes at every step: the text encoder is trained, or the captions are never the same."""

    def __init__(self, family: Family, components: Components, *, options: TextOptions, with_gradients: bool) -> None:
        """Keeps the text encoder; ``with_gradients`` says whether it is trained."""
        self.family, self.components, self.options = family, components, options
        self.with_gradients = with_gradients

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns the states of the batch, with gradients where the text encoder is trained."""
        with torch.set_grad_enabled(self.with_gradients):
            return self.family.encode_text(self.components, captions, options=self.options)


def text_key(caption: str, identity: str) -> bytes:
    """Returns the cache key of a caption's states, 16 bytes.

    Args:
        caption: as it is encoded.
        identity: what tells one way of encoding from another: encoders, options, number format.
    """
    said = f"v{TEXT_CACHE_VERSION}|{identity}|{caption}"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


class KeptTexts:
    """Encodes every caption once, alone, so that a text's states do not depend on the batch it came in.

    The states are kept on disk, where the next run of the same captions finds them, and in memory as far as they fit.
    """

    def __init__(
        self,
        family: Family,
        components: Components,
        *,
        options: TextOptions,
        folder: Path | None = None,
        identity: str = "",
        device: torch.device | None = None,
    ) -> None:
        """Keeps the text encoder until ``free``.

        Args:
            family: encodes.
            components: with the text encoders.
            options: how captions are read.
            folder: of all caches; None keeps states in memory alone.
            identity: what tells these text encoders from others: family, hash, number format.
            device: where the states are needed.
        """
        self.family, self.options, self.folder = family, options, folder
        self.components: Components | None = components
        self.identity = f"{identity}|{options.key()}"
        self._shards: Shards | None = None
        self._number: dict[str, int] = {}
        self._held: Held[str] = Held(TEXT_BYTES)
        self._device = device or torch.device("cpu")

    def fill(self, captions: Iterable[str], progress: Progress | None = None) -> bool:
        """Encodes what no earlier run has encoded, and returns whether the text encoder can be let go of.

        Args:
            captions: all that may be asked for.
            progress: may cancel; what is done stays.

        Raises:
            StorageError: the disk failed while the states were written.
        """
        progress = progress or SilentProgress()
        distinct = sorted(set(captions))
        if self.folder is None or not self._open(distinct, progress):
            return self._fill_memory(distinct, progress)
        shards = self._opened()
        missing = shards.missing()
        with shards.writing() as put:
            for done, number in enumerate(missing):
                progress.update(done, len(missing), "encoding captions")
                if not shards.has(number) and put(number, _row(self._encoded(distinct[number]))):
                    shards.look()
        return True

    def free(self) -> None:
        """Lets go of the text encoder; only kept captions can be asked for afterwards."""
        self.components = None

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns states without gradients."""
        rows = [self._row(caption) for caption in captions]
        pooled = [row["pooled"] for row in rows if "pooled" in row]
        return TextState(
            hidden=same_length([row["hidden"] for row in rows]), pooled=torch.stack(pooled) if pooled else None
        )

    def _open(self, distinct: Sequence[str], progress: Progress) -> bool:
        """Looks what lies on disk; False where the rest has no room there, which is told."""
        if self.folder is None:
            return False
        folder = self.folder / TEXTS_FOLDER
        self._number = {caption: number for number, caption in enumerate(distinct)}
        keys = [text_key(caption, self.identity) for caption in distinct]
        # The longest, for texts may take several windows: what is asked of disk and device must never be too little.
        largest = self._encoded(max(distinct, key=len))
        row_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _row(largest).values()) + ROW_BYTES
        quota_bytes = max(TEXTS_QUOTA_BYTES, 2 * row_bytes * len(distinct))
        shards = Shards(folder, keys, quota_bytes=quota_bytes, status=progress.status)
        try:
            shards.look()
            ensure_space(folder, row_bytes * len(shards.missing()))
        except StorageError as cause:
            progress.status(f"Encoded captions are not kept on disk: {cause}.")
            return False
        self._shards = shards
        self._held.choose(self._device, row_bytes * len(distinct))
        return True

    def _fill_memory(self, distinct: Sequence[str], progress: Progress) -> bool:
        for done, caption in enumerate(distinct):
            progress.update(done, len(distinct), "encoding captions")
            if not self._held.put(caption, _row(self._encoded(caption))):
                return False
        return True

    def _row(self, caption: str) -> dict[str, torch.Tensor]:
        row = self._held.get(caption)
        if row is None:
            row = self._read(caption)
            row = self._held.put(caption, row) or row
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in row.items()}

    def _read(self, caption: str) -> dict[str, torch.Tensor]:
        number = self._number.get(caption)
        if self._shards is None or number is None:
            return _row(self._encoded(caption))
        try:
            return self._shards.read(number)
        except DamagedShard as damage:
            if self.components is None:
                raise StorageError(
                    f"{damage}; start the run again: it encodes these captions anew and goes on where it stopped."
                ) from damage
            return _row(self._encoded(caption))

    def _opened(self) -> Shards:
        if self._shards is None:
            raise RuntimeError("the cache of texts is not open")
        return self._shards

    def _encoded(self, caption: str) -> TextState:
        if self.components is None:
            raise RuntimeError(f"the text encoder was freed before the caption {caption!r} was encoded")
        with torch.no_grad():
            return self.family.encode_text(self.components, [caption], options=self.options)


def _row(state: TextState) -> dict[str, torch.Tensor]:
    """A state of one caption as tensors without the batch."""
    row = {"hidden": state.hidden[0]}
    return row if state.pooled is None else {**row, "pooled": state.pooled[0]}
