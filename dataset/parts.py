"""Parts of a data set that are objects: its folders with their options, and what is not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import InputError
from .words import printable


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A folder of pictures that are trained with the same options.

    Attributes:
        folder: Where its pictures lie; names in the table are relative to it.
        concept: Text after the repeat count in a kohya folder's name, else empty.
        repeats: How often each picture is seen in an epoch.
        is_reg: A regularisation folder (kohya's rule of equal count applies).
        shuffle_captions: Tags after the first ``keep_tokens`` come in a new order every time.
        keep_tokens: Tags at the front that never move and are never dropped.
        caption_prefix: Tags put in front of every caption, not counted by ``keep_tokens``.
        caption_dropout: Share of times the whole caption is left empty.
        tag_dropout: Share of the movable tags that is left out each time.
        flip: Mirror the picture every other time, at random.
        prior_weight: Factor on the loss of a regularisation folder's pictures, besides the run's own.
        keep_tokens_separator: Mark in a caption: what stands before it never moves, and what stands after a second one
            neither and comes last; in such captions it takes the place of ``keep_tokens``. Empty for none.
        secondary_separator: Mark between tags that move and are dropped together; becomes a comma. Empty for none.
        loss_weight: Factor on the loss of the folder's pictures.
    """

    folder: Path
    concept: str = ""
    repeats: int = 1
    is_reg: bool = False
    shuffle_captions: bool = False
    keep_tokens: int = 0
    caption_prefix: str = ""
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    flip: bool = False
    prior_weight: float = 1.0
    keep_tokens_separator: str = ""
    secondary_separator: str = ""
    loss_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file or folder that was found but is not used.

    Attributes:
        path: Its path below the opened folder, with ``/``.
        reason: Why, without the path.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


LATER_OPTIONS: tuple[tuple[str, object], ...] = (
    ("prior_weight", 1.0),
    ("keep_tokens_separator", ""),
    ("secondary_separator", ""),
    ("loss_weight", 1.0),
)
"""Options that came after the first version, with their defaults."""


def options_of(subset: Subset) -> tuple[object, ...]:
    """Every option of a subset that decides what is trained, without its place on disk."""
    # What came later is left out where it has its default, so that runs made before are found again.
    later = tuple((name, getattr(subset, name)) for name, default in LATER_OPTIONS if getattr(subset, name) != default)
    return (
        subset.repeats,
        subset.is_reg,
        subset.shuffle_captions,
        subset.keep_tokens,
        subset.caption_prefix,
        subset.caption_dropout,
        subset.tag_dropout,
        subset.flip,
        *later,
    )


def nothing_left(folder: Path, skipped: Sequence[Skipped]) -> InputError:
    """Builds (does not raise) the error for a folder of which no picture can be used."""
    first = "; ".join(str(entry) for entry in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return InputError(f"no picture in {str(folder)!r} can be used ({first}{more}); repair or replace them")
