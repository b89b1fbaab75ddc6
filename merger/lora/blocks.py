"""Block weights: from a preset name or a row of numbers to one factor per block of a LoRA file.

The rows are those of the LoRA Block Weight extension of the web UI (17 and 26 numbers for SD 1.x, 12 and 20 for SDXL).
Where we depart from it: a name is resolved for the architecture of the actual file, a wrong length is refused, blocks
that the file lacks never shift the others, and ALL is 1 for every key.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...core.errors import InputError, unknown_name
from ...core.seeds import derive
from .presets import LETTERS, Preset, Presets, Slot, load_presets, parse_slot

TEXT_ENCODER = "TE"
"""The text encoder's row; it is the first number, BASE, of every vector."""

IDENTITY_NAMES = ("", "ALL", "LC-ALL")
"""Texts that mean the plain loader: factor 1 for every block, known to a vector or not."""


@dataclass(frozen=True, kw_only=True)
class VectorForm:
    """What the numbers of one vector length stand for.

    Attributes:
        blocks: Block of each slot; the first is the text encoder.
        summary: The slots in words, for messages.
    """

    blocks: tuple[str, ...]
    summary: str

    @property
    def length(self) -> int:
        """Number of slots."""
        return len(self.blocks)


def _rows(prefix: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:02d}" for number in numbers)


_FORMS: Mapping[str, tuple[VectorForm, VectorForm]] = {
    "sd15": (
        VectorForm(
            blocks=(TEXT_ENCODER, *_rows("IN", (1, 2, 4, 5, 7, 8)), "MID", *_rows("OUT", range(3, 12))),
            summary="BASE IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03-OUT11",
        ),
        VectorForm(
            blocks=(TEXT_ENCODER, *_rows("IN", range(12)), "MID", *_rows("OUT", range(12))),
            summary="BASE IN00-IN11 MID OUT00-OUT11",
        ),
    ),
    "sdxl": (
        VectorForm(
            blocks=(TEXT_ENCODER, *_rows("IN", (4, 5, 7, 8)), "MID", *_rows("OUT", range(6))),
            summary="BASE IN04 IN05 IN07 IN08 MID OUT00-OUT05",
        ),
        VectorForm(
            blocks=(TEXT_ENCODER, *_rows("IN", range(9)), "MID", *_rows("OUT", range(9))),
            summary="BASE IN00-IN08 MID OUT00-OUT08",
        ),
    ),
}

FORMS: Mapping[str, tuple[VectorForm, VectorForm]] = {**_FORMS, "sd2": _FORMS["sd15"]}
"""Per family: the short form (blocks with attention) and the long form (every block)."""


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """Block weights of one file, with an account of how they were read.

    Attributes:
        weights: Factor per block, for every block of the form and every block of the file; TE is the text encoder.
        length: Length of the vector used; 0 for ALL, which needs none.
        report: One sentence per line: what was used, and which blocks of the file it sets to 0 without naming them.
    """

    weights: Mapping[str, float]
    length: int
    report: tuple[str, ...]


def resolve_weights(
    text: str,
    *,
    family: str,
    stems: Iterable[str],
    presets: Presets | None = None,
    block_of_stem: Callable[[str], str] | None = None,
) -> dict[str, float]:
    """Return the factor of every block of a file; see `explain_weights` for arguments and errors."""
    resolved = explain_weights(text, family=family, stems=stems, presets=presets, block_of_stem=block_of_stem)
    return dict(resolved.weights)


def explain_weights(
    text: str,
    *,
    family: str,
    stems: Iterable[str],
    presets: Presets | None = None,
    block_of_stem: Callable[[str], str] | None = None,
) -> ResolvedWeights:
    """Resolve block weights for the blocks that a file really has.

    Args:
        text: A preset name (``NIN``), a name with values for its letters (``AOUT A=0.5``, ``ROUT seed=3``), the
            numbers themselves separated by commas or spaces, or nothing (the same as ALL). A leading ``lbw=`` is
            passed over.
        family: The LoRA's family, ``sd15``, ``sd2`` or ``sdxl``.
        stems: The module stems of the file; they say whether it has more than the attention blocks.
        presets: Named vectors; the shipped ones by default.
        block_of_stem: Names the block of a stem; the family's own by default.

    Raises:
        InputError: Wrong length (the right ones are named), a letter without a value, or not a number.
        UnknownNameError: No preset has that name (the nearest are listed).
        FormatError: A stem belongs to no block of the family.
    """
    forms = _forms(family)
    name_of = block_of_stem or family_blocks(family)
    counts = Counter(name_of(stem) for stem in stems)
    text = text.strip()
    if text.lower().startswith("lbw="):
        text = text[4:].strip()
    if text in IDENTITY_NAMES:
        weights = dict.fromkeys((*forms[1].blocks, *counts), 1.0)
        return ResolvedWeights(weights=weights, length=0, report=("ALL: every block at 1.",))
    vector, title = _vector(text, family, forms, counts, load_presets() if presets is None else presets)
    form = next(form for form in forms if form.length == len(vector))
    weights = dict(zip(form.blocks, vector, strict=True))
    unnamed = sorted(block for block in counts if block not in weights)
    weights.update(dict.fromkeys(unnamed, 0.0))
    report = [f"{title}: {form.length} numbers, {form.summary}."]
    if unnamed:
        listed = ", ".join(f"{block} ({counts[block]} modules)" for block in unnamed)
        report.append(
            f"The {form.length}-number form does not name these blocks of the file, so they are set to 0: {listed}; "
            f"use {forms[1].length} numbers to set them."
        )
    return ResolvedWeights(weights=weights, length=form.length, report=tuple(report))


def block_strengths(
    stems: Iterable[str], weights: Mapping[str, float], block_of_stem: Callable[[str], str]
) -> dict[str, float]:
    """Return the factor of each module stem.

    Raises:
        InputError: A stem's block has no weight (the weights were resolved for another file).
    """
    strengths: dict[str, float] = {}
    for stem in stems:
        block = block_of_stem(stem)
        if block not in weights:
            raise InputError(
                f"The block weights hold no number for {block} (module {stem}), only for "
                f"{', '.join(weights)}; resolve them for this LoRA file."
            )
        strengths[stem] = weights[block]
    return strengths


def _forms(family: str) -> tuple[VectorForm, VectorForm]:
    if family not in FORMS:
        raise unknown_name("model family with block weights", family, FORMS)
    return FORMS[family]


def family_blocks(family: str) -> Callable[[str], str]:
    """Return the function that names the block of a stem in one family."""
    from ...core.discovery import discover
    from ...families import __name__ as families

    found = discover(families, "FAMILY")
    if family not in found:
        raise unknown_name("model family", family, found)
    name_of: Callable[[str], str] = found[family].block_of_stem
    return name_of


_ASSIGNMENT = re.compile(r"(\w+)\s*=\s*([^\s,]+)")


def _vector(
    text: str, family: str, forms: tuple[VectorForm, VectorForm], counts: Mapping[str, int], presets: Presets
) -> tuple[tuple[float, ...], str]:
    """Return the numbers for one of the forms, and the words that name them in a report."""
    given = {name.upper(): value for name, value in _ASSIGNMENT.findall(text)}
    bare = _ASSIGNMENT.sub(" ", text).strip().strip(",").strip()
    words = [word for word in re.split(r"[\s,]+", bare) if word]
    slots = [parse_slot(word) for word in words]
    if len(words) > 1 and None not in slots:
        row = tuple(slot for slot in slots if slot is not None)
        if len(row) not in (forms[0].length, forms[1].length):
            raise InputError(f"The block weights have {len(row)} numbers; {_needed(family, forms)}.")
        return _fill(row, bare, given), "Given numbers"
    preset = _find(bare, words, presets)
    whole_file = any(block not in forms[0].blocks for block in counts)
    for form in reversed(forms) if whole_file else forms:
        if form.length in preset.vectors:
            return _fill(preset.vectors[form.length], preset.name, given), f"Preset {preset.name}"
    lengths = " and ".join(f"{length} ({preset.origins[length]})" for length in sorted(preset.vectors))
    raise InputError(f"Preset {preset.name} has {lengths} numbers; {_needed(family, forms)}: choose another preset.")


def _needed(family: str, forms: tuple[VectorForm, VectorForm]) -> str:
    lengths = " or ".join(f"{form.length} ({form.summary})" for form in forms)
    return f"a LoRA of family {family} takes {lengths}"


def _find(bare: str, words: list[str], presets: Presets) -> Preset:
    if bare in presets:
        return presets[bare]
    folded = [preset for name, preset in presets.items() if name.casefold() == bare.casefold()]
    if len(folded) == 1:
        return folded[0]
    if "," in bare or len(words) > 3:
        wrong = next((word for word in words if parse_slot(word) is None), bare)
        raise InputError(
            f"'{wrong}' in the block weights is not a number; give numbers separated by commas, or one preset name."
        )
    raise unknown_name("block weight preset", bare, presets)


def _fill(vector: tuple[Slot, ...], name: str, given: Mapping[str, str]) -> tuple[float, ...]:
    """Put numbers in the place of letters.

    R is uniform in 0..1 with three decimals and U uniform in -0.5..1.5, as the extension's code draws them, but from
    the seed written as ``seed=N`` (0 by default), so that the same text always gives the same weights.
    """
    unknown = sorted(key for key in given if key not in (*LETTERS[2:], "SEED"))
    if unknown:
        raise InputError(f"'{unknown[0]}=' means nothing in block weights; A=, B=, X= and seed= can be given.")
    seed = _number("seed", given.get("SEED", "0"))
    filled: list[float] = []
    for index, slot in enumerate(vector):
        if isinstance(slot, float):
            filled.append(slot)
        elif slot in ("R", "U"):
            unit = derive(int(seed), "block weights", index) / 2**63
            filled.append(round(unit if slot == "R" else unit * 2.0 - 0.5, 3))
        elif slot in given:
            filled.append(_number(slot, given[slot]))
        else:
            raise InputError(f"{name} holds the letter {slot}: give its value after it, such as '{name} {slot}=0.5'.")
    return tuple(filled)


def _number(name: str, text: str) -> float:
    value = parse_slot(text)
    if not isinstance(value, float):
        raise InputError(f"{name}={text} in the block weights is not a number; write {name}=0.5, for example.")
    return value
