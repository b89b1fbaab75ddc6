"""Block weights: from a text and a LoRA file to one factor per module of the file.

The vectors are those of the LoRA Block Weight extension of the web UI and of its relatives (`forms`). Where we depart
from it: a name is resolved for the architecture of the actual file, a wrong length is refused, blocks that the file
lacks never shift the others, and ALL is 1 for every key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import InputError, unknown_name
from ...core.seeds import derive
from ...families._spec import Family, get_family
from ...networks._blocks import expand_selection
from .dialects import BlockNumbers, WeightsText, parse_weights
from .elements import ElementSets, apply_elements, load_elements, parse_elements
from .forms import (
    FOREIGN_LENGTHS,
    FORMS,
    TEXT_ENCODER,
    Places,
    VectorForm,
    factor_of,
    family_places,
    forms_of,
    set_row,
)
from .presets import DEFECTIVE, Preset, Presets, Slot, load_presets

IDENTITY_NAMES = ("", "ALL", "LC-ALL")
"""Texts that mean the plain loader: factor 1 for every block, known to a vector or not."""

_ALIAS_PREFIXES = ("SD-LyCO", "SDXL-", "SD-")
"""The Inspire pack puts these before names that are the same numbers as everybody's."""


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """Block weights of one file, with an account of how they were read.

    Attributes:
        factors: Factor per module stem of the file.
        weights: Factor per row of the form and per block of the file; TE is the text encoder.
        length: Length of the vector used; 0 where none was needed.
        report: One sentence per line: what was used, and which blocks of the file it sets to 0 without naming them.
        start: Sampler step, from 1, at which the LoRA begins; None for the first.
        stop: Sampler step at which it ends; None for never.
    """

    factors: Mapping[str, float]
    weights: Mapping[str, float]
    length: int
    report: tuple[str, ...]
    start: int | None = None
    stop: int | None = None

    @property
    def scheduled(self) -> bool:
        """Whether the LoRA is off at some sampler steps."""
        return self.start is not None or self.stop is not None


def resolve_weights(
    text: str,
    *,
    family: str,
    stems: Iterable[str],
    presets: Presets | None = None,
    elements: ElementSets | None = None,
    places: Places | None = None,
) -> dict[str, float]:
    """Return the factor of every row of a file; see `explain_weights` for arguments and errors."""
    found = explain_weights(text, family=family, stems=stems, presets=presets, elements=elements, places=places)
    return dict(found.weights)


def explain_weights(
    text: str,
    *,
    family: str,
    stems: Iterable[str],
    presets: Presets | None = None,
    elements: ElementSets | None = None,
    places: Places | None = None,
) -> ResolvedWeights:
    """Resolve block weights for the blocks that a file really has.

    Args:
        text: As `dialects.parse_weights` reads it; nothing is the same as ALL.
        family: The LoRA's family, ``sd15``, ``sd2`` or ``sdxl``.
        stems: The module stems of the file; they say whether it has more than the attention blocks.
        presets: Named vectors; the shipped ones by default.
        elements: Named sets of elemental rules; the shipped ones by default.
        places: Names the rows of a stem, finest first; the family's own by default.

    Raises:
        InputError: Wrong length (the right ones are named), a letter without a value, or not a number.
        UnknownNameError: No preset, set or block has that name (the nearest are listed).
        FormatError: A stem belongs to no block of the family.
    """
    forms = forms_of(family)
    parsed = parse_weights(text)
    if parsed.cell:
        raise InputError(
            f"{parsed.cell} in the block weights stands for the vector of a grid's block weight axis; connect the LoRA "
            "to one, or name a preset."
        )
    stems = tuple(stems)
    if is_plain(parsed):
        return ResolvedWeights(
            factors=dict.fromkeys(stems, 1.0),
            weights=dict.fromkeys(forms[1].blocks, 1.0),
            length=0,
            report=("ALL: every block at 1.", *_step_words(parsed)),
            start=parsed.start,
            stop=parsed.stop,
        )
    name_of = places or family_places(family)
    file_places = {stem: name_of(stem) for stem in stems}
    counts = Counter(found[-1] for found in file_places.values())
    known = load_presets() if presets is None else presets
    rows, length, report = _rows_of(parsed, family, forms, counts, file_places, known)
    if parsed.inverted:
        rows = {row: 1.0 - value for row, value in rows.items()}
        report.append("ZYX: one minus every number.")
    report += _assign(rows, parsed.assignments, get_family(family))
    factors = {stem: factor_of(found, rows) for stem, found in file_places.items()}
    report += _unnamed(factors, file_places, counts, length, forms)
    report += _without_effect(rows, file_places)
    filled = {stem: 0.0 if value is None else value for stem, value in factors.items()}
    if parsed.elements:
        report += _elemental(filled, parsed.elements, load_elements() if elements is None else elements, family)
    weights = dict(rows)
    for block in counts:
        if not any(row == block or row.startswith(f"{block}.") for row in rows):
            weights[block] = 0.0
    return ResolvedWeights(
        factors=filled,
        weights=weights,
        length=length,
        report=(*report, *_step_words(parsed)),
        start=parsed.start,
        stop=parsed.stop,
    )


def is_plain(parsed: WeightsText) -> bool:
    """Whether a text leaves every module at 1, so that no block has to be known."""
    plain = not (
        parsed.slots or parsed.assignments or parsed.elements or parsed.inverted or parsed.percent or parsed.cell
    )
    return plain and parsed.preset.upper() in IDENTITY_NAMES


def _check_defect(slots: Sequence[Slot]) -> None:
    numbers = tuple(slot for slot in slots if isinstance(slot, float))
    if numbers in DEFECTIVE:
        raise InputError(f"{DEFECTIVE[numbers]}; take BODY0.5 with 17 numbers, or write the 26 you want.")


def _rows_of(
    parsed: WeightsText,
    family: str,
    forms: Sequence[VectorForm],
    counts: Mapping[str, int],
    file_places: Mapping[str, tuple[str, ...]],
    presets: Presets,
) -> tuple[dict[str, float], int, list[str]]:
    """The numbers by row, the vector's length (0 for none), and the words for the report."""
    if parsed.percent is not None:
        return *_percent_rows(parsed.percent, file_places), ["Inspire's form, counted over the blocks of the file."]
    if parsed.slots:
        _check_defect(parsed.slots)
        fitting = [form for form in forms if form.length == len(parsed.slots)]
        said = f"The block weights have {len(parsed.slots)} numbers"
        form = _chosen_form(parsed, fitting, family, said, (len(parsed.slots),))
        numbers = _fill(parsed.slots, "the vector", parsed)
        return form.rows(numbers), form.length, [f"Given numbers: {form.length} numbers, {form.summary}."]
    if parsed.preset.upper() in IDENTITY_NAMES:
        return dict.fromkeys(forms[1].blocks, 1.0), 0, ["ALL: every block at 1."]
    preset = _find(parsed.preset, presets)
    whole_file = any(block not in forms[0].blocks for block in counts)
    in_order = (forms[1], forms[0], *forms[2:]) if whole_file else forms
    fitting = [form for form in in_order if form.length in preset.vectors]
    held = " and ".join(f"{length} ({preset.origins[length]})" for length in sorted(preset.vectors))
    said = f"Preset {preset.name} has {held} numbers"
    same = [form for form in fitting if form.length == fitting[0].length]
    form = _chosen_form(parsed, same, family, said, sorted(preset.vectors))
    _check_defect(preset.vectors[form.length])
    numbers = _fill(preset.vectors[form.length], preset.name, parsed)
    report = [f"Preset {preset.name}: {form.length} numbers, {form.summary}."]
    if form.length in preset.replaced:
        report.append(
            f"{preset.name} with {form.length} numbers stands twice: the one of {preset.origins[form.length]} was "
            f"taken, not that of {preset.replaced[form.length]}."
        )
    return form.rows(numbers), form.length, report


def _chosen_form(
    parsed: WeightsText, fitting: Sequence[VectorForm], family: str, said: str, lengths: Iterable[int]
) -> VectorForm:
    """The one form that fits.

    Raises:
        InputError: None does (what the lengths are for is said), or two tools read the length differently.
    """
    if parsed.form:
        fitting = [form for form in fitting if form.dialect == parsed.form]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        readings = " or ".join(f"form={form.dialect} ({form.summary})" for form in fitting)
        raise InputError(f"{said}, which two tools read differently; add {readings}.")
    hints = []
    for length in lengths:
        families = [name for name, forms in FORMS.items() if any(form.length == length for form in forms)]
        if length in FOREIGN_LENGTHS or families:
            hints.append(f"{length} are for {FOREIGN_LENGTHS.get(length) or ' and '.join(families)}")
    hint = f"; {', '.join(hints)}" if hints and not parsed.form else ""
    of_form = f" of form={parsed.form}" if parsed.form else ""
    raise InputError(f"{said}{of_form}; {needed_lengths(family)}{hint}: choose other numbers or a preset.")


def needed_lengths(family: str) -> str:
    """The lengths that a family's LoRAs take, in words."""
    short, long, *others = forms_of(family)
    lengths = f"{short.length} ({short.summary}) or {long.length} ({long.summary})"
    further = ", ".join(str(length) for length in sorted({form.length for form in others}))
    return f"a LoRA of family {family} takes {lengths}, or {further} of other tools"


def _find(name: str, presets: Presets) -> Preset:
    for candidate in (name, *(name[len(prefix) :] for prefix in _ALIAS_PREFIXES if name.startswith(prefix))):
        if candidate in presets:
            return presets[candidate]
        folded = [preset for known, preset in presets.items() if known.casefold() == candidate.casefold()]
        if len(folded) == 1:
            return folded[0]
    raise unknown_name("block weight preset", name, presets)


def _fill(vector: Sequence[Slot], name: str, parsed: WeightsText) -> tuple[float, ...]:
    """Put numbers in the place of letters.

    R is uniform in 0..1 with three decimals and U uniform in -0.5..1.5, as the extension's code draws them, but from
    the seed written as ``seed=N`` (0 by default), so that the same text always gives the same weights.
    """
    filled: list[float] = []
    for index, slot in enumerate(vector):
        if isinstance(slot, float):
            filled.append(slot)
        elif slot in ("R", "U"):
            unit = derive(parsed.seed or 0, "block weights", index) / 2**63
            filled.append(round(unit if slot == "R" else unit * 2.0 - 0.5, 3))
        else:
            letter = slot[0].upper()
            if letter not in parsed.letters:
                raise InputError(
                    f"{name} holds the letter {letter}: give its value after it, such as '{name} {letter}=0.5'."
                )
            value = parsed.letters[letter]
            offset = float(slot[1:]) if len(slot) > 1 else 0.0
            filled.append(value / 2.0 if slot in ("a", "b") else value + offset)
    return tuple(filled)


def _percent_rows(
    items: Sequence[tuple[str, float]], file_places: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, float], int]:
    """Rows of Inspire's ``%`` form: ``in2`` is the second IN block that the file has.

    Source: ComfyUI-Inspire-Pack, inspire/lora_block_weight.py, block_spec_parser (base also covers time, size, output).
    """
    present: dict[str, list[str]] = {"in": [], "mid": [], "out": []}
    edges = {"TIME", "LABEL", "END"}
    for places in file_places.values():
        kind = places[-1].rstrip("0123456789").lower()
        row = next((place for place in places if place.startswith("MID.") and place.count(".") == 1), places[-1])
        if kind in present and not edges & set(places) and row not in present[kind]:
            present[kind].append(row)
    default = next((value for name, value in items if name == "default"), 1.0)
    base = next((value for name, value in items if name == "base"), default)
    rows = {TEXT_ENCODER: base, **dict.fromkeys(edges, base)}
    rows.update({row: default for found in present.values() for row in found})
    for name, value in items:
        kind, numbers = name.rstrip("0123456789-"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
        if kind not in present:
            continue
        ordered = sorted(present[kind])
        first, _, last = numbers.partition("-")
        low, high = (1, len(ordered)) if not first else (int(first), int(last or first))
        if not 1 <= low <= high or high > len(ordered):
            raise InputError(
                f"'{name}={value:g}' counts beyond what is there: the LoRA file has {len(ordered)} {kind.upper()} "
                f"blocks ({', '.join(ordered) or 'none'}); count from 1, or name blocks as in IN04=0.5."
            )
        rows.update(dict.fromkeys(ordered[low - 1 : high], value))
    return rows, 0


def _assign(rows: dict[str, float], assignments: Iterable[BlockNumbers], family: Family) -> list[str]:
    said = []
    for given in assignments:
        word = given.blocks.upper()
        if word in ("TE1", "TE2"):
            blocks: tuple[str, ...] = (word,)
        else:
            blocks = expand_selection(given.blocks, family.blocks)
        for block in blocks:
            set_row(rows, block, given.value)
        said.append(f"{given.blocks}={given.value:g}: {', '.join(blocks)}.")
    return said


def _unnamed(
    factors: Mapping[str, float | None],
    file_places: Mapping[str, tuple[str, ...]],
    counts: Mapping[str, int],
    length: int,
    forms: Sequence[VectorForm],
) -> list[str]:
    missing = Counter(file_places[stem][-1] for stem, value in factors.items() if value is None)
    if not missing:
        return []
    listed = ", ".join(f"{block} ({missing[block]} modules)" for block in sorted(missing))
    use = f"; use {forms[1].length} numbers to set them" if length == forms[0].length else ""
    return [f"The {length}-number form does not name these blocks of the file, so they are set to 0: {listed}{use}."]


def _without_effect(rows: Mapping[str, float], file_places: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names the blocks that are given a number and of which the file has nothing."""
    there = {place for places in file_places.values() for place in places}
    absent = sorted({row.partition(".")[0] for row in rows} - {place.partition(".")[0] for place in there})
    absent = [row for row in absent if row not in ("TE1", "TE2", "TIME", "LABEL", "EMB", "END")]
    return [f"The file has nothing in {', '.join(absent)}; their numbers have no effect."] if absent else []


def _elemental(factors: dict[str, float], text: str, sets: ElementSets, family: str) -> list[str]:
    counted = apply_elements(factors, parse_elements(text, sets), get_family(family))
    return [
        f"Rule {rule.written()}: {hits} modules." if hits else f"Rule {rule.written()} fits no module of the file."
        for rule, hits in counted
    ]


def _step_words(parsed: WeightsText) -> tuple[str, ...]:
    if not parsed.scheduled:
        return ()
    until = "the end" if parsed.stop is None else f"step {parsed.stop - 1}"
    return (f"On from sampler step {parsed.start or 1} to {until}; the text is encoded with the LoRA on.",)
