"""Kohya's lists of numbers per block: dims, alphas and learning rate weights, with their string presets.

`block_dims`, `block_alphas`, `conv_block_dims` and `conv_block_alphas` have one number for each of 25 places for SD 1.x
(IN00 ... IN11, MID, OUT00 ... OUT11) or 23 for SDXL (time embedding, IN00 ... IN08, the three parts of MID, OUT00 ...
OUT08, output layers). `down_lr_weight`, `mid_lr_weight` and `up_lr_weight` have 12, 1 and 12, or 9, 3 and 9; down runs
from IN00, up from OUT00. Source: kohya-ss/sd-scripts networks/lora.py (LoRANetwork.NUM_OF_BLOCKS, get_block_index,
get_block_lr_weight) and its documentation. A list of another length is refused, where kohya cuts or fills it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.errors import InputError, unknown_name
from ._blocks import TEXT_ENCODER

SIZE_LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
LR_LISTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
THRESHOLD = "block_lr_zero_threshold"
KOHYA_LISTS = (*SIZE_LISTS, *LR_LISTS, THRESHOLD)
PRESETS = ("sine", "cosine", "linear", "reverse_linear", "zeros")

_MIDDLE = re.compile(r"^mid_block\.(resnets\.0|attentions\.0|resnets\.1)")
_MIDDLE_PLACES = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """What the lists say of one module; None where they say nothing."""

    rank: int | None
    alpha: float | None
    lr_factor: float


@dataclass(frozen=True, kw_only=True)
class KohyaLists:
    """The lists of a text by name, each with one number per place of the model."""

    lists: tuple[tuple[str, tuple[float, ...]], ...] = ()
    zero_threshold: float = 0.0

    def has(self, name: str) -> bool:
        """Whether a list was given."""
        return any(name == given for given, _ in self.lists)

    @property
    def has_sizes(self) -> bool:
        """Whether a rank or alpha was given."""
        return any(self.has(name) for name in SIZE_LISTS)

    def canonical(self) -> tuple[str, ...]:
        """Texts that are the same for the same lists."""
        texts = [f"{name}:{','.join(f'{value:g}' for value in values)}" for name, values in sorted(self.lists)]
        return (*texts, *([f"{THRESHOLD}:{self.zero_threshold:g}"] if self.zero_threshold else []))

    def with_list(self, name: str, text: str, family_blocks: Sequence[str]) -> KohyaLists:
        """These lists and one more.

        Raises:
            InputError: wrong length, or not a number.
            UnknownNameError: no such preset.
        """
        if name == THRESHOLD:
            return replace(self, zero_threshold=_numbers(name, text)[0])
        length = _length(name, family_blocks)
        values = _preset(name, text, length) if name in LR_LISTS else None
        if values is None:
            values = _numbers(name, text)
        if len(values) != length:
            raise InputError(
                f"{name} of the targets has {len(values)} numbers; this model takes {length} ({_words(name, length)})."
            )
        if name.endswith("dims") and any(value != int(value) for value in values):
            raise InputError(f"{name} of the targets holds a number that is not whole; ranks are whole numbers.")
        others = tuple(item for item in self.lists if item[0] != name)
        return replace(self, lists=(*others, (name, values)))

    def settings_of(self, place: int | None, *, spatial: bool) -> PlaceSettings:
        """What the lists say of a place (None: a text encoder, of which they say nothing).

        Args:
            place: as `index_of` gives it.
            spatial: whether the module is a 3x3 convolution, for which the conv lists count.
        """
        if place is None:
            return PlaceSettings(rank=None, alpha=None, lr_factor=1.0)
        named = dict(self.lists)
        dims, alphas = ("conv_block_dims", "conv_block_alphas") if spatial else ("block_dims", "block_alphas")
        rank = int(named[dims][place]) if dims in named else None
        alpha = named[alphas][place] if alphas in named else None
        return PlaceSettings(rank=rank, alpha=alpha, lr_factor=self._lr_factor(place))

    def _lr_factor(self, place: int) -> float:
        named = dict(self.lists)
        if not any(name in named for name in LR_LISTS):
            return 1.0
        sdxl = any(len(values) == 9 or (name == "mid_lr_weight" and len(values) == 3) for name, values in self.lists)
        sdxl = sdxl or any(name in SIZE_LISTS and len(values) == 23 for name, values in self.lists)
        downs, mids = (9, 3) if sdxl else (12, 1)
        place -= 1 if sdxl else 0  # SDXL's first place, the time embedding, is in no list
        for name, start, count in (
            ("down_lr_weight", 0, downs),
            ("mid_lr_weight", downs, mids),
            ("up_lr_weight", downs + mids, downs),
        ):
            if start <= place < start + count and name in named:
                value = named[name][place - start]
                return 0.0 if value <= self.zero_threshold else value
        return 1.0


def index_of(block: str, path: str, family_blocks: Sequence[str]) -> int | None:
    """The place of a module in kohya's lists, None for a text encoder's."""
    if block == TEXT_ENCODER:
        return None
    blocks = [name for name in family_blocks if name != TEXT_ENCODER]
    if len(blocks) != 19:
        return blocks.index(block)
    if path.startswith(("time_embedding", "add_embedding")):
        return 0
    if path.startswith(("conv_out", "conv_norm_out")):
        return 22
    if block == "MID":
        found = _MIDDLE.match(path)
        return 10 + (_MIDDLE_PLACES[found[1]] if found else 1)
    number = int(block[-2:])
    return 1 + number if block.startswith("IN") else 13 + number


def _length(name: str, family_blocks: Sequence[str]) -> int:
    sdxl = len([block for block in family_blocks if block != TEXT_ENCODER]) == 19
    if name in SIZE_LISTS:
        return 23 if sdxl else 25
    if name == "mid_lr_weight":
        return 3 if sdxl else 1
    return 9 if sdxl else 12


def _words(name: str, length: int) -> str:
    if length == 23:
        return "time embedding, IN00-IN08, three for MID, OUT00-OUT08, output layers"
    if length == 25:
        return "IN00-IN11, MID, OUT00-OUT11"
    side = {"down_lr_weight": "IN", "up_lr_weight": "OUT"}.get(name, "MID")
    return side if side == "MID" else f"{side}00-{side}{length - 1:02d}, or one of {', '.join(PRESETS)}"


def _preset(name: str, text: str, length: int) -> tuple[float, ...] | None:
    """Numbers of `sine`, `cosine+.25` ...; None where the text is a list."""
    word, _, added = (side.strip() for side in text.partition("+"))
    if not re.match(r"^[A-Za-z_]+$", word):
        return None
    if word not in PRESETS:
        raise unknown_name(f"preset of {name}", word, PRESETS)
    extra = _numbers(name, added)[0] if added else 0.0
    last = max(1, length - 1)
    shares = {
        "sine": [math.sin(math.pi / 2 * number / last) for number in range(length)],
        "cosine": [math.sin(math.pi / 2 * number / last) for number in reversed(range(length))],
        "linear": [number / last for number in range(length)],
        "reverse_linear": [number / last for number in reversed(range(length))],
        "zeros": [0.0] * length,
    }
    return tuple(share + extra for share in shares[word])


def _numbers(name: str, text: str) -> tuple[float, ...]:
    values: list[float] = []
    for word in re.split(r"[,\s]+", text.strip().strip('"')):
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1e6:
            raise InputError(f"'{word}' in {name} of the targets is not a number from 0; write them with commas.")
        values.append(value)
    return tuple(values)
