"""What the numbers of a block-weight vector stand for, per model family and length.

A row is a block (``IN04``, ``MID``, ``TE``), a part of one (``MID.0``, ``IN04.1.0``: the first transformer block of
IN04) or one of ``TE1``, ``TE2``, ``TIME``, ``LABEL``, ``END``. A module belongs to the finest row that a form has for
it, see `places_of`.

Sources: 12, 17, 20 and 26 numbers are those of the LoRA Block Weight extension, 19 and 25 of merge block weighting
(the same without BASE), 21 and 110 of SuperMerger, 21 and 27 of the Inspire pack, 23 of kohya's trainer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from ...core.errors import unknown_name
from ...families._spec import Family, get_family

TEXT_ENCODER = "TE"
"""The text encoder's row; it is the first number, BASE, of most vectors."""

NO_ROW = ""
"""A slot that no module of a LoRA belongs to, such as SuperMerger's VAE."""


@dataclass(frozen=True, kw_only=True)
class VectorForm:
    """One length of vector.

    Attributes:
        dialect: Whose form it is: lbw, mbw, supermerger, inspire or kohya.
        blocks: Row of each slot.
        summary: The slots in words, for messages.
        unnamed: Rows without a slot that are not 0 (`TE` in forms without BASE).
        also: Rows that another row's number covers.
    """

    dialect: str
    blocks: tuple[str, ...]
    summary: str
    unnamed: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    also: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def length(self) -> int:
        """Number of slots."""
        return len(self.blocks)

    def rows(self, vector: Iterable[float]) -> dict[str, float]:
        """The factor of every row from the numbers of a vector of this length."""
        rows = {row: value for row, value in zip(self.blocks, vector, strict=True) if row != NO_ROW}
        return {**self.unnamed, **rows, **{row: rows[source] for row, source in self.also.items()}}


def _rows(prefix: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:02d}" for number in numbers)


_MIDS = ("MID.0", "MID.1", "MID.2")
_WITHOUT_BASE = MappingProxyType({TEXT_ENCODER: 1.0})
_INSPIRE_BASE = MappingProxyType({"TIME": TEXT_ENCODER, "LABEL": TEXT_ENCODER, "END": TEXT_ENCODER})
_LONG = {
    "sd15": (*_rows("IN", range(12)), "MID", *_rows("OUT", range(12))),
    "sdxl": (*_rows("IN", range(9)), "MID", *_rows("OUT", range(9))),
}


def _extended_xl() -> tuple[str, ...]:
    """SuperMerger's 110 rows of SDXL: two text encoders, then every part of every block, then time, label and VAE.

    Its names put block, part and transformer block behind each other: ``IN410`` is the first of input_blocks.4.1.
    """
    rows = ["TE1", "TE2", NO_ROW]
    depth = {"IN04": 2, "IN05": 2, "IN07": 10, "IN08": 10, "OUT00": 10, "OUT01": 10, "OUT02": 10}
    depth.update(dict.fromkeys(("OUT03", "OUT04", "OUT05"), 2))
    for block in _LONG["sdxl"]:
        if block == "MID":
            rows += ["MID.0", "MID.1", *(f"MID.1.{k}" for k in range(10)), "MID.2"]
            continue
        rows.append(f"{block}.0")
        if block in depth:
            rows += [f"{block}.1", *(f"{block}.1.{k}" for k in range(depth[block]))]
        if block in ("OUT02", "OUT05"):
            rows.append(f"{block}.2")
    return (*rows, "END", "TIME", "LABEL", NO_ROW)


def _forms_sd15() -> tuple[VectorForm, ...]:
    long = _LONG["sd15"]
    return (
        VectorForm(
            dialect="lbw",
            blocks=(TEXT_ENCODER, *_rows("IN", (1, 2, 4, 5, 7, 8)), "MID", *_rows("OUT", range(3, 12))),
            summary="BASE IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03-OUT11",
        ),
        VectorForm(dialect="lbw", blocks=(TEXT_ENCODER, *long), summary="BASE IN00-IN11 MID OUT00-OUT11"),
        VectorForm(dialect="mbw", blocks=long, summary="IN00-IN11 MID OUT00-OUT11 without BASE", unnamed=_WITHOUT_BASE),
        VectorForm(
            dialect="inspire",
            blocks=(TEXT_ENCODER, *_rows("IN", range(1, 12)), *_MIDS, *_rows("OUT", range(12))),
            summary="BASE IN01-IN11, three of MID, OUT00-OUT11",
            also=_INSPIRE_BASE,
        ),
    )


def _forms_sdxl() -> tuple[VectorForm, ...]:
    long, extended = _LONG["sdxl"], _extended_xl()
    return (
        VectorForm(
            dialect="lbw",
            blocks=(TEXT_ENCODER, *_rows("IN", (4, 5, 7, 8)), "MID", *_rows("OUT", range(6))),
            summary="BASE IN04 IN05 IN07 IN08 MID OUT00-OUT05",
        ),
        VectorForm(dialect="lbw", blocks=(TEXT_ENCODER, *long), summary="BASE IN00-IN08 MID OUT00-OUT08"),
        VectorForm(dialect="mbw", blocks=long, summary="IN00-IN08 MID OUT00-OUT08 without BASE", unnamed=_WITHOUT_BASE),
        VectorForm(
            dialect="supermerger",
            blocks=(TEXT_ENCODER, *long, NO_ROW),
            summary="BASE IN00-IN08 MID OUT00-OUT08 VAE",
        ),
        VectorForm(
            dialect="inspire",
            blocks=(TEXT_ENCODER, *_rows("IN", range(1, 9)), *_MIDS, *_rows("OUT", range(9))),
            summary="BASE IN01-IN08, three of MID, OUT00-OUT08",
            also=_INSPIRE_BASE,
        ),
        VectorForm(
            dialect="kohya",
            blocks=("EMB", *_rows("IN", range(9)), *_MIDS, *_rows("OUT", range(9)), "END"),
            summary="time and size, IN00-IN08, three of MID, OUT00-OUT08, output",
            unnamed=_WITHOUT_BASE,
        ),
        VectorForm(dialect="supermerger", blocks=extended, summary="CLIPL CLIPG IN0 IN00 ... LABEL VAE"),
        VectorForm(
            dialect="supermerger", blocks=extended[1:], summary="CLIPG IN0 IN00 ... LABEL VAE",
            unnamed=MappingProxyType({"TE1": 1.0}),
        ),
    )  # fmt: skip


_SD15 = _forms_sd15()
FORMS: Mapping[str, tuple[VectorForm, ...]] = {"sd15": _SD15, "sd2": _SD15, "sdxl": _forms_sdxl()}
"""Per family: the short form (blocks with attention), the long form (every block), then those of other tools."""

FOREIGN_LENGTHS: Mapping[int, str] = {
    58: "Inspire's Flux",
    60: "Flux without BASE",
    61: "Flux",
}
"""Lengths that are known, but for model families that are not here; a preset may have them."""

KNOWN_LENGTHS = frozenset({form.length for forms in FORMS.values() for form in forms} | set(FOREIGN_LENGTHS))


def forms_of(family: str) -> tuple[VectorForm, ...]:
    """The forms of a family, short and long first.

    Raises:
        UnknownNameError: The family has none.
    """
    if family not in FORMS:
        raise unknown_name("model family with block weights", family, FORMS)
    return FORMS[family]


def vector_blocks(length: int) -> tuple[str, ...]:
    """The blocks of the extension's vector of this length; empty for a length it does not have."""
    found = [form.blocks for forms in FORMS.values() for form in forms[:2] if form.length == length]
    return found[0] if found else ()


Places = Callable[[str], tuple[str, ...]]
"""Stem of a module -> the rows it could belong to, finest first; the last one is its block."""

_PART = re.compile(r"^(?:input_blocks|output_blocks)_\d+_(\d+)(?:_transformer_blocks_(\d+))?(?:_|$)")
_MIDDLE_PART = re.compile(r"^middle_block_(\d+)(?:_transformer_blocks_(\d+))?(?:_|$)")
_ENDS = {"time_embed_": ("TIME", "EMB"), "label_emb_": ("LABEL", "EMB"), "out_": ("END",)}


def places_of(family: Family, stem: str) -> tuple[str, ...]:
    """The rows a module could belong to, finest first: ``IN04.1.0``, ``IN04.1``, ``IN04``.

    Raises:
        FormatError: The stem belongs to no block of the family.
    """
    block = family.block_of_stem(stem)
    if block == TEXT_ENCODER:
        place = family.place_of_stem(stem)
        second = place is not None and place.part == family.text_encoders[-1].part and len(family.text_encoders) > 1
        return ("TE2" if second else "TE1", TEXT_ENCODER)
    name = family.ldm_name(stem)
    for start, rows in _ENDS.items():
        if name.startswith(start):
            return (*rows, block)
    match = (_MIDDLE_PART if block == "MID" else _PART).match(name)
    if match is None:
        return (block,)
    part = f"{block}.{match[1]}"
    return (part, block) if match[2] is None else (f"{part}.{match[2]}", part, block)


@lru_cache(maxsize=8)
def family_places(name: str) -> Places:
    """`places_of` for the family of this name, remembering every answer."""
    family = get_family(name)
    return lru_cache(maxsize=20_000)(lambda stem: places_of(family, stem))


def factor_of(places: tuple[str, ...], rows: Mapping[str, float]) -> float | None:
    """The number of the finest row that is given, None where none is."""
    return next((rows[place] for place in places if place in rows), None)


def set_row(rows: dict[str, float], block: str, value: float) -> None:
    """Give a whole block (or ``TE1``, ``MID.0``) a number, whatever finer rows it had before."""
    finer = [row for row in rows if row.startswith(f"{block}.")]
    if block == TEXT_ENCODER:
        finer += ["TE1", "TE2"]
    for row in finer:
        rows.pop(row, None)
    rows[block] = value
