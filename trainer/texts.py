"""What captions say to the network: encoded at every step, or once and kept."""

from collections.abc import Sequence
from typing import Protocol

import torch

from ..core.progress import Progress
from ..families._spec import Components, Family, TextState

TEXT_BYTES = 2 * 2**30


class Texts(Protocol):
    """Turns captions into what the network is told."""

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns the states of a batch of captions."""
        ...


class LiveTexts:
    """Encodes at every step: the text encoder is trained, or the captions are never the same."""

    def __init__(self, family: Family, components: Components, *, clip_skip: int, with_gradients: bool) -> None:
        """Keeps the text encoder; ``with_gradients`` says whether it is trained."""
        self.family, self.components, self.clip_skip = family, components, clip_skip
        self.with_gradients = with_gradients

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns the states of the batch, with gradients where the text encoder is trained."""
        with torch.set_grad_enabled(self.with_gradients):
            return self.family.encode_text(self.components, captions, clip_skip=self.clip_skip)


class KeptTexts:
    """Encodes every caption once, alone, so that a text's states do not depend on the batch it came in."""

    def __init__(self, family: Family, components: Components, *, clip_skip: int) -> None:
        """Keeps the text encoder until ``free``."""
        self.family, self.clip_skip = family, clip_skip
        self.components: Components | None = components
        self._kept: dict[str, TextState] = {}
        self._kept_bytes = 0

    def fill(self, captions: Sequence[str], progress: Progress) -> bool:
        """Encodes all captions and returns whether all could be kept within 2 GiB."""
        distinct = sorted(set(captions))
        for done, caption in enumerate(distinct):
            progress.update(done, len(distinct), "encoding captions")
            self._state(caption)
            if caption not in self._kept:
                return False
        return True

    def free(self) -> None:
        """Lets go of the text encoder; only kept captions can be asked for afterwards."""
        self.components = None

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns states without gradients."""
        states = [self._state(caption) for caption in captions]
        pooled = [state.pooled for state in states if state.pooled is not None]
        return TextState(
            hidden=torch.cat([state.hidden for state in states]), pooled=torch.cat(pooled) if pooled else None
        )

    def _state(self, caption: str) -> TextState:
        if caption in self._kept:
            return self._kept[caption]
        if self.components is None:
            raise RuntimeError(f"the text encoder was freed before the caption {caption!r} was encoded")
        with torch.no_grad():
            state = self.family.encode_text(self.components, [caption], clip_skip=self.clip_skip)
        kept = [tensor for tensor in (state.hidden, state.pooled) if tensor is not None]
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        if self._kept_bytes + size_bytes <= TEXT_BYTES:
            self._kept[caption] = state
            self._kept_bytes += size_bytes
        return state
