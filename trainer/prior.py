"""Prior preservation: what regularisation pictures should be answered with is what the frozen base answers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.transfer import to_device
from ..families._spec import Conditioning, TextState
from ..networks._attach import AdapterSet
from .objectives._spec import Question


@dataclass(frozen=True, kw_only=True)
class PriorPreservation:
    """Gives regularisation pictures the base's own prediction as their target; see ``loop.Learner.preserve``.

    The base sees the same noisy latents at the same time steps with the same text, read by its own text encoder. Its
    pass keeps no activations and comes before the adapter's, so it adds a forward pass to the batches that hold such
    pictures and no memory to speak of.

    Source: Ruiz et al. 2022 (DreamBooth, arXiv 2208.12242), section 3.2, where the prior is drawn by the frozen model;
    a target from the model itself is OneTrainer's "prior prediction".

    Attributes:
        adapter: is switched off for the base's pass.
        predict: as of the learner.
        rows: index of a batch -> which of its pictures are for regularisation.
        base_text: (index, seed, step, micro) -> the batch's text as the base reads it, asked with the adapter switched
            off; None where the text encoder is not trained, whose text is the base's anyway.
    """

    adapter: AdapterSet
    predict: Callable[[torch.Tensor, torch.Tensor, Any, Any], torch.Tensor]
    rows: Callable[[int], Sequence[int]]
    base_text: Callable[..., TextState] | None

    def __call__(
        self,
        question: Question,
        text: TextState,
        conditioning: Conditioning | None,
        index: int,
        *,
        seed: int,
        step: int,
        micro: int,
    ) -> Question:
        """Returns the question with other targets for the regularisation pictures of the batch."""
        rows = self.rows(index)
        if not rows:
            return question
        place = to_device(torch.tensor(rows), question.target.device)
        with torch.no_grad(), without(self.adapter):
            if self.base_text is not None:
                text = self.base_text(index, seed=seed, step=step, micro=micro)
            prior = self.predict(
                question.noisy_latents[place], question.timesteps[place], _of(text, place), _of(conditioning, place)
            )
        target = question.target.index_copy(0, place, prior.to(question.target.dtype))
        return replace(question, target=target)


@contextmanager
def without(adapter: AdapterSet) -> Iterator[None]:
    """Lets the model answer as if the adapter were not there."""
    enabled, adapter.enabled = adapter.enabled, False
    try:
        yield
    finally:
        adapter.enabled = enabled


def _of(state: Any, rows: torch.Tensor) -> Any:
    """The rows of every tensor of a text state or of a conditioning."""
    if state is None:
        return None
    changes = {name: value[rows] for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
    return replace(state, **changes)
