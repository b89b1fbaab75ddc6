"""What a concept preset would take out, tag by tag with the reason, and the recipe that does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..core.params import Params, param
from ..dataset.normal import normal
from ..dataset.table import Dataset
from ..dataset.words import counted, printable
from .presets._spec import ConceptPreset, find_preset, preset_names
from .recipe import RecipeStep, recipe_text
from .steps._core import CLASS_CHOICES, TRAITS, CoreTable, classes_of, core_table
from .steps._lists import tag_list
from .steps._match import Matcher, entries
from .steps._people import people_mask
from .steps._spec import Step, steps
from .steps._vectors import TRIGGER, fixed_mask
from .steps.prune_traits import PruneTraitsParams, trait_rows

REMOVE, KEEP = "remove", "keep"
MAX_SHOWN_REMOVED = 80
MAX_SHOWN_KEPT = 25


@dataclass(frozen=True, kw_only=True)
class PresetParams(Params):
    """The preset and a person's flips."""

    preset: str = param("character", doc="What the LoRA is to learn", choices=preset_names)
    trigger: str = param(
        "", doc="Put first in every caption: the trigger of a character, the name of an object, place or composition"
    )
    keep: str = param(
        "",
        doc="Flips: tags that the proposal would remove and that stay; separated by commas, also glob: and category:",
        multiline=True,
    )
    remove: str = param(
        "", doc="Flips: further tags that go, such as what the tagger saw wrongly (blush)", multiline=True
    )
    class_by: str = param("folder", doc="What makes pictures one character", choices=CLASS_CHOICES)
    core_share: float = param(
        0.35,
        doc="A trait goes where this share of a class's pictures with one person has it",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    worn: bool = param(False, doc="Also take out ribbons, hats, glasses and earrings that are always there")


@dataclass(frozen=True, kw_only=True)
class ProposalRow:
    """One tag of one class.

    Attributes:
        class_name: The class.
        tag: As written.
        captions: Captions of the class that hold it.
        share: Of the class's pictures with one person, 0..1.
        kind: What the tag is about.
        verdict: "remove" or "keep".
        reason: Why.
    """

    class_name: str
    tag: str
    captions: int
    share: float
    kind: str
    verdict: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ProposalRows(Sequence[ProposalRow]):
    """Every tag of every class with its verdict, as columns; rows are made when asked for.

    Attributes:
        table: The tags.
        answers: What can be said of one: verdict and reason.
        answer: int16 [rows], place in ``answers``.
    """

    table: CoreTable
    answers: tuple[tuple[str, str], ...]
    answer: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> ProposalRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[ProposalRow]: ...
    def __getitem__(self, place: int | slice) -> ProposalRow | list[ProposalRow]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        row = self.table[place]
        verdict, reason = self.answers[int(self.answer[place])]
        return ProposalRow(
            class_name=row.class_name,
            tag=row.tag,
            captions=row.captions,
            share=row.share,
            kind=row.kind,
            verdict=verdict,
            reason=reason,
        )

    def where(self, wanted: str, *, trait: bool | None = None, of: range | None = None) -> NDArray[np.bool_]:
        """Rows (all, or some) with a verdict, and whose reason names a trait or not: bool [rows]."""
        fits = [
            verdict == wanted and (trait is None or ("trait" in reason) == trait) for verdict, reason in self.answers
        ]
        found: NDArray[np.bool_] = np.array(fits, dtype=bool)[
            self.answer if of is None else self.answer[of.start : of.stop]
        ]
        return found


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a preset would do.

    Attributes:
        preset: The preset.
        rows: Every tag of every class, most frequent first.
        recipe: The same as steps.
        unmatched: Flips that matched nothing.
        trigger: Put first.
    """

    preset: ConceptPreset
    rows: ProposalRows
    recipe: tuple[RecipeStep, ...]
    unmatched: tuple[str, ...] = ()
    trigger: str = ""

    def removed(self, class_name: str | None = None) -> list[str]:
        """Tags that would go, of one class or of all."""
        places = np.flatnonzero(self.rows.where(REMOVE))
        if class_name is not None:
            number = self.rows.table.class_names.index(class_name)
            places = places[self.rows.table.class_of_rows()[places] == number]
        return [self.rows.table.vocabulary[tag_id] for tag_id in self.rows.table.tag_ids[places].tolist()]

    def text(self) -> str:
        """The table, with what to look at."""
        lines = [f"{self.preset.title}: {self.preset.summary}"]
        first = self.trigger or "nothing is put first"
        lines.append(f"first tag: {first}; shuffle {'on' if self.preset.shuffle else 'off'}, "
                     f"keep tokens {self.preset.keep_tokens}")  # fmt: skip
        for number in range(len(self.rows.table.class_names)):
            lines += _class_lines(self.rows, number)
        lines += [f"  ! {sentence}" for sentence in self.unmatched]
        lines += [f"  * {sentence}" for sentence in self.preset.advice]
        return "\n".join(lines)

    def recipe_text(self) -> str:
        """The recipe; empty when nothing is to be done."""
        return recipe_text(self.recipe)


def propose(dataset: Dataset, params: PresetParams) -> Proposal:
    """Works out what a preset would take out of the captions; nothing is changed.

    Raises:
        InputError: An entry of the flips is refused, or an object preset has no trigger.
    """
    preset = find_preset(params.preset)
    if preset.families and not params.trigger.strip():
        raise InputError(
            f"the preset {preset.name!r} needs the object's name as trigger, to find its other names; write it "
            "(such as zwx rifle)"
        )
    prune = _prune_params(preset, params)
    classes = classes_of(dataset, params.class_by, skip_reg=True)
    table = core_table(dataset, classes, core_share=params.core_share)
    judge = _Judge(dataset, preset, params, prune)
    known = steps()
    recipe = [RecipeStep(step=known["prune_traits"], params=prune)] if _does_something(prune) else []
    if params.trigger.strip():
        recipe.append(_trigger_step(known["trigger"], preset, params))
    unmatched = judge.unmatched
    if preset.families and not other_names(preset, params.trigger):
        unmatched += (f"no list of names holds {params.trigger!r}; put its other names into 'remove'",)
    return Proposal(
        preset=preset,
        rows=judge.rows(table),
        recipe=tuple(recipe),
        unmatched=unmatched,
        trigger=", ".join(tag_list(params.trigger, what="trigger")),
    )


def _does_something(prune: PruneTraitsParams) -> bool:
    return prune.mode != "none" or bool(prune.remove)


def _prune_params(preset: ConceptPreset, params: PresetParams) -> PruneTraitsParams:
    remove = [removal.entries for removal in preset.removals]
    remove += other_names(preset, params.trigger)
    return PruneTraitsParams(
        mode=preset.trait_mode,
        worn=params.worn,
        class_by=params.class_by,
        core_share=params.core_share,
        keep=_joined(preset.keep, params.keep),
        remove=_joined(*remove, params.remove),
    )


def other_names(preset: ConceptPreset, trigger: str) -> list[str]:
    """Other names of the thing that a trigger names: families that hold its noun, without the trigger itself."""
    own = [normal(tag) for tag in tag_list(trigger, what="trigger")]
    nouns = {name.split()[-1] for name in own if name} | set(own)
    found: dict[str, str] = {}
    for family in preset.families:
        members = tag_list(family, what="family")
        if nouns.intersection(normal(member) for member in members):
            found.update({normal(member): member for member in members if normal(member) not in own})
    return [", ".join(found.values())] if found else []


def _trigger_step(step: Step, preset: ConceptPreset, params: PresetParams) -> RecipeStep:
    values = {"trigger": params.trigger, "keep_at_front": preset.keep_tokens > 0}
    return RecipeStep(step=step, params=step.params.from_json(values))


def _joined(*lists: str) -> str:
    parts: dict[str, str] = {}
    for text in lists:
        for entry in entries(text, what="list"):
            parts.setdefault(entry.shown, entry.shown)
    # A regular expression takes its line to the end, so each entry has a line when there is one.
    separator = "\n" if any(part.startswith("regex:") for part in parts) else ", "
    return separator.join(parts)


class _Judge:
    """Says of each tag whether it goes, and why; the same rules as the step ``prune_traits``."""

    def __init__(self, dataset: Dataset, preset: ConceptPreset, params: PresetParams, prune: PruneTraitsParams) -> None:
        self._prune = prune
        tags = dataset.tags
        matcher = Matcher(tags)
        flips_keep = entries(params.keep, what="keep")
        flips_remove = entries(params.remove, what="remove")
        self._lists: list[tuple[str, NDArray[np.bool_]]] = [
            (removal.reason, matcher.mask(entries(removal.entries, what=removal.reason))) for removal in preset.removals
        ]
        names = other_names(preset, params.trigger)
        self._lists += [("another name of the object", matcher.mask(entries(text, what="names"))) for text in names]
        self._by_hand = matcher.mask(flips_remove)
        self._kept_by_hand = matcher.mask(flips_keep)
        self._kept_by_preset = matcher.mask(entries(preset.keep, what="preset"))
        self._trigger = tags.categories == TRIGGER
        self._people = people_mask(tags.vocabulary)
        fixed = np.bincount(tags.ids[fixed_mask(dataset)], minlength=len(tags.vocabulary))
        self._front = (fixed > 0) & (fixed == tags.counts())
        self.unmatched = (*matcher.unmatched(flips_keep), *matcher.unmatched(flips_remove))

    def rows(self, table: CoreTable) -> ProposalRows:
        """The verdict on each tag of each class; of several reasons the first of these counts."""
        by_tag: list[tuple[str, str, NDArray[np.bool_]]] = [
            (KEEP, "trigger", self._trigger),
            (KEEP, "kept by hand", self._kept_by_hand),
            (KEEP, "kept by the preset", self._kept_by_preset),
            (REMOVE, "removed by hand", self._by_hand),
            *((REMOVE, reason, mask) for reason, mask in self._lists),
            (KEEP, "count of people", self._people),
            (KEEP, "kept at the front of captions", self._front),
        ]
        answers = [(KEEP, ""), *((verdict, reason) for verdict, reason, _ in by_tag)]
        of_tag = np.zeros(max(len(table.vocabulary), 1), dtype=np.int16)
        for place in range(len(by_tag), 0, -1):
            of_tag[by_tag[place - 1][2]] = place
        answer = of_tag[table.tag_ids]
        open_rows, goes = answer == 0, trait_rows(table, self._prune)
        for place, trait in enumerate(TRAITS):
            is_this = open_rows & (table.traits == place)
            answers.append((REMOVE, f"trait ({trait.kind})"))
            answer[is_this & goes] = len(answers) - 1
            if self._prune.mode == "none":
                continue
            for is_core, why in ((False, "rare here"), (True, "to be prompted")):
                answers.append((KEEP, f"trait ({trait.kind}), {why}"))
                answer[is_this & ~goes & (table.is_core == is_core)] = len(answers) - 1
        return ProposalRows(table=table, answers=tuple(answers), answer=answer)


def _class_lines(rows: ProposalRows, number: int) -> list[str]:
    of_class = rows.table.class_rows(number)
    if not of_class:
        return []
    removed, traits, others = (
        (np.flatnonzero(rows.where(verdict, trait=trait, of=of_class)) + of_class.start).tolist()
        for verdict, trait in ((REMOVE, None), (KEEP, True), (KEEP, False))
    )
    name = rows.table.class_names[number]
    lines = [f"{printable(name)}: {counted(len(removed), 'tag')} to remove, {len(traits) + len(others)} to keep"]
    lines.append(f"    {'tag':<36} {'captions':>8} {'share':>5}  why")
    lines += [_row_line("-", rows[place]) for place in removed[:MAX_SHOWN_REMOVED]]
    if len(removed) > MAX_SHOWN_REMOVED:
        lines.append(f"    and {len(removed) - MAX_SHOWN_REMOVED} more")
    if traits:
        lines.append("  traits still in the captions (put them into 'remove' to flip):")
        lines += [_row_line("?", rows[place]) for place in traits[:MAX_SHOWN_KEPT]]
    if others:
        lines.append("  stays, most frequent first (put them into 'remove' to flip):")
        lines += [_row_line("+", rows[place]) for place in others[:MAX_SHOWN_KEPT]]
    return lines


def _row_line(mark: str, row: ProposalRow) -> str:
    tag = printable(row.tag if len(row.tag) <= 36 else row.tag[:33] + "...")
    return f"  {mark} {tag:<36} {row.captions:>8} {row.share:>5.0%}  {row.reason}".rstrip()
