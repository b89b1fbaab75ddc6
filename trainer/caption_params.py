"""How captions are read and shown in training: their length, weights of words, and how many tags at the beginning."""

from dataclasses import dataclass

from ..core.errors import InputError
from ..core.params import Params, param
from ..dataset.captions import TokenWarmup
from ..families._spec import LONG_CAPTIONS

TOKEN_LENGTHS = (75, 150, 225)


@dataclass(frozen=True, kw_only=True)
class CaptionParams(Params):
    """How captions are read."""

    max_tokens: int = param(
        75,
        doc="Tokens of a caption that are read; what comes after is not trained. Longer captions are read in parts of "
        "75 tokens.",
        unit="tokens",
        choices=TOKEN_LENGTHS,
    )
    long_captions: str = param(
        LONG_CAPTIONS[0],
        doc="How captions of more than 75 tokens are put together. comfyui: as many parts as a caption needs, each "
        "with its marks, as ComfyUI and the web UI draw. kohya: always all parts, without the marks between them.",
        choices=LONG_CAPTIONS,
    )
    weighted_captions: bool = param(
        False,
        doc="Read (word), (word:1.2) and [word] as weights of words; plain brackets are then written \\( and \\). Off: "
        "brackets are plain text.",
    )
    token_warmup: float = param(
        0.0,
        doc="Steps over which the number of tags shown grows from token_warmup_min to all; tags that are kept in front "
        "are always shown. Below 1 it is a share of the run's steps; 0 is off.",
        unit="steps",
        minimum=0.0,
        maximum=10_000_000.0,
        step=0.05,
    )
    token_warmup_min: int = param(
        1, doc="Movable tags shown at the first step.", unit="tags", minimum=0, maximum=1000, step=1
    )

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        check_whole("token_warmup", self.token_warmup)
        if self.token_warmup == 0.0 and self.token_warmup_min != 1:
            raise InputError(
                f"token_warmup_min is {self.token_warmup_min}, but token_warmup is 0: give the warm-up a length, or "
                "leave token_warmup_min 1."
            )

    def warmup(self, total_steps: int) -> TokenWarmup | None:
        """Returns the warm-up of a run; None where there is none."""
        if self.token_warmup == 0.0:
            return None
        return TokenWarmup(steps=steps_of(self.token_warmup, total_steps), min_tags=self.token_warmup_min)


def check_whole(name: str, value: float) -> None:
    """Refuses a number of steps that is neither whole nor a share.

    Raises:
        InputError: it is above 1 and not whole.
    """
    if value > 1.0 and value != int(value):
        raise InputError(f"{name} is {value:g}: give whole steps, or a share of the run below 1, such as 0.5.")


def steps_of(value: float, total_steps: int) -> int:
    """Returns the steps that a setting stands for: a share of the run below 1, else steps; at least one."""
    return max(1, int(value * total_steps) if value < 1.0 else int(value))
