"""What is done to the model before a stretch of training."""

from typing import Any

import pytest
import torch

from lora_atelier.families._spec import Components
from lora_atelier.trainer import session
from lora_atelier.trainer.config import TrainParams


class OldTextEncoder(torch.nn.Linear):
    """Switches checkpointing on as transformers before 5 does: re-entrant unless told otherwise."""

    given: dict[str, Any] | None = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        self.given = gradient_checkpointing_kwargs


class NewUnet(torch.nn.Linear):
    """Switches checkpointing on as diffusers does."""

    calls = 0

    def enable_gradient_checkpointing(self) -> None:
        self.calls += 1


@pytest.mark.parametrize("asked", [True, False])
def test_checkpointing_is_never_re_entrant(asked: bool) -> None:
    unet, text_encoder = NewUnet(1, 1).eval(), OldTextEncoder(1, 1).eval()
    components = Components(unet=unet, text_encoders=(text_encoder,))
    session._prepare(components, TrainParams(gradient_checkpointing=asked))
    assert unet.calls == asked
    assert text_encoder.given == ({"use_reentrant": False} if asked else None)
    assert unet.training == text_encoder.training == asked
    assert not any(weight.requires_grad for module in (unet, text_encoder) for weight in module.parameters())
