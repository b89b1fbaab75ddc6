"""The settings that optimizers share which find their own step size."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import param
from ._spec import ScheduledParams


@dataclass(frozen=True, kw_only=True)
class AdaptiveParams(ScheduledParams):
    """Learning rates that are factors on the step size that is found."""

    lr_unet: float = param(
        1.0,
        doc="Factor on the step size that the optimizer finds itself; leave it at 1.",
        minimum=0.0,
        maximum=10.0,
        step=0.1,
    )
    lr_text_encoder: float = param(
        1.0,
        doc="The same factor for the text encoder; it must equal lr_unet.",
        minimum=0.0,
        maximum=10.0,
        step=0.1,
    )
    d0: float = param(
        1e-6,
        doc="First guess of the distance to the goal; the step size grows from here. 1e-6 to 1e-4.",
        minimum=1e-12,
        maximum=1.0,
        step=1e-6,
        advanced=True,
    )
    growth_rate: float = param(
        0.0,
        doc="Largest factor by which the step size may grow in one step, such as 1.02; 0 is no limit.",
        minimum=0.0,
        maximum=1000.0,
        step=0.01,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        if 0.0 < self.growth_rate < 1.0:
            raise InputError(
                f"growth_rate is {self.growth_rate:g}: it must be 0 (no limit) or at least 1, such as 1.02."
            )

    @property
    def growth(self) -> float:
        """The limit of growth as the formulas need it."""
        return self.growth_rate if self.growth_rate > 0.0 else float("inf")
