"""A moving average of the adapter, and the weights that are shown to the world."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..core.errors import FormatError
from ..networks._attach import AdapterSet
from .weights import AdapterWeights


def trained_tensors(adapter: AdapterSet) -> dict[str, torch.Tensor]:
    """Returns the live trained tensors by name, sharing memory."""
    return {
        f"{stem}.{name}": value.detach()
        for stem in adapter.stems
        for name, value in adapter.parts_of(stem).items()
        if value.is_floating_point()
    }


class MovingAverage:
    """An exponential moving average of an adapter, in fp32.

    The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.

    Source: Polyak and Juditsky 1992; the rising decay as in TensorFlow's ``ExponentialMovingAverage`` and diffusers'
    ``EMAModel``.
    """

    def __init__(self, adapter: AdapterSet, *, decay: float) -> None:
        """Begins with the adapter as it is."""
        self.decay = decay
        self._live = trained_tensors(adapter)
        self._values = {name: value.detach().float().clone() for name, value in self._live.items()}

    def update(self, step: int) -> None:
        """Takes the weights after the ``step``-th update (counted from 1) in."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        values = list(self._values.values())
        live = [value.detach().float() for value in self._live.values()]
        with torch.no_grad():
            torch._foreach_lerp_(values, live, 1.0 - decay)

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the average by name."""
        return dict(self._values)

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes back what ``state`` gave; nothing given, it begins with the adapter as it is.

        Raises:
            FormatError: the names are others.
        """
        source = tensors or self._live
        if source.keys() != self._values.keys():
            raise FormatError("The moving average of the checkpoint is of another adapter; start the run anew.")
        with torch.no_grad():
            for name, value in self._values.items():
                value.copy_(source[name])


@contextmanager
def shown_weights(
    adapter: AdapterSet,
    optimizer: torch.optim.Optimizer,
    weights: AdapterWeights,
    average: MovingAverage | None,
) -> Iterator[None]:
    """Lets the adapter hold what is to be saved or drawn with: the average, where there is one, else itself.

    An optimizer that averages the weights itself (schedule-free) is asked for its average. Afterwards every trained
    number is what it was, to the bit.
    """
    switches = hasattr(optimizer, "train") and hasattr(optimizer, "eval")
    if average is None and not switches:
        yield
        return
    live = trained_tensors(adapter)
    before = {name: value.clone() for name, value in live.items()}
    with torch.no_grad():
        if switches:
            optimizer.eval()  # type: ignore[attr-defined]
            weights.show()
        if average is not None:
            for name, value in average.state().items():
                live[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            if switches:
                optimizer.train()  # type: ignore[attr-defined]
            for name, value in before.items():
                live[name].copy_(value)
