"""LoRAs as ingredients: an open file, its strengths, and the factor of every module by its block weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...core.errors import InputError
from ...networks._spec import get_network
from .handle import Lora
from .modules import LoraFile, LoraModule


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One LoRA that is put into something.

    Attributes:
        file: open.
        strength_model: factor on the UNet's changes.
        strength_clip: factor on the text encoders' changes.
        factors: further factor by the file's own stems, 1 where it has none.
    """

    file: LoraFile
    strength_model: float = 1.0
    strength_clip: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, lora: Lora, factors: Mapping[str, float]) -> Ingredient:
        """The file of a handle with the handle's strengths."""
        return cls(
            file=LoraFile.of(lora),
            strength_model=lora.strength_model,
            strength_clip=lora.strength_clip,
            factors=factors,
        )

    def strength(self, module: LoraModule) -> float:
        """The factor on a module's change."""
        part = self.strength_clip if module.is_text else self.strength_model
        return part * self.factors.get(module.stem, 1.0)

    def applied_strength(self, module: LoraModule) -> float:
        """The same as ComfyUI applies it, whose OFT takes a strength twice."""
        return float(self.strength(module) ** get_network(module.algorithm).strength_power)


def one_family(ingredients: Sequence[Ingredient]) -> None:
    """Refuses LoRAs of unlike model families.

    Raises:
        InputError: two of them are named.
    """
    first = ingredients[0].file
    for other in ingredients[1:]:
        if other.file.family.name != first.family.name:
            raise InputError(
                f"{first.name} is a LoRA for {first.family.title} and {other.file.name} for "
                f"{other.file.family.title}: only LoRAs of one kind of model can be put together."
            )
