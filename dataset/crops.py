"""Crops around subjects: the head fills the training picture, the whole person becomes its regularisation twin.

Source of the scheme: the notes of a person LoRA, which trains on tight crops of the head and regularises with crops of
the whole person out of the same photographs, so that both sets have equal counts. Every crop is a row of the table;
nothing is written to disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..core.errors import InputError, nearest_names
from ..core.params import Params, param
from .combine import only_used_subsets
from .detect import Box, Found
from .detect_rows import Boxes
from .normal import matched_nothing, normal
from .table import Dataset
from .words import counted, printable

Crop = tuple[int, int, int, int]
"""(left, top, right, bottom) in whole px."""

_MAX_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class CropParams(Params):
    """How subjects are cut out."""

    train_width_px: int = param(
        512, doc="Width of the training size, whose proportions head crops have", unit="px", minimum=32, maximum=8192,
        step=8,
    )  # fmt: skip
    train_height_px: int = param(512, doc="Height of the training size", unit="px", minimum=32, maximum=8192, step=8)
    head_classes: str = param(
        "head, face", doc="Names of the classes that are heads, the best first; a picture's best one is taken"
    )
    person_classes: str = param(
        "person, body, full body, halfbody", doc="Names of the classes that are whole persons, the best first"
    )
    head_share: float = param(
        0.6, doc="Share of the crop's width or height that the head takes", minimum=0.1, maximum=1.0, step=0.05
    )
    person_margin: float = param(
        0.08, doc="Room around a person, as a share of its size", minimum=0.0, maximum=1.0, step=0.01
    )
    heads: str = param(
        "largest",
        doc="Which heads of a picture with several are cut out",
        choices=("largest", "surest", "all"),
    )
    max_upscale: float = param(
        2.0,
        doc="Head crops that would have to be enlarged by more to reach the training size are left out; 0 keeps all",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )
    without_person: str = param(
        "whole picture",
        doc="What the twin of a head is when no person was found around it",
        choices=("whole picture", "no twin"),
    )
    drop_from_twins: str = param(
        "",
        doc="Tags taken out of the captions of person crops, separated by commas: the trigger word, where it should "
        "mean the head alone",
    )
    prior_weight: float = param(
        1.0, doc="Factor on the loss of the person crops", minimum=0.0, maximum=10.0, step=0.05, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Crops of heads and their twins.

    Attributes:
        heads: For training.
        persons: For regularisation, a twin for each head in the same order (fewer where there is no twin); None
            without any.
        both: Both in one data set, and the regularisation pictures that the set had before.
        report: What was done in words.
    """

    heads: Dataset
    persons: Dataset | None
    both: Dataset
    report: str


@dataclass(kw_only=True)
class _Plan:
    head_rows: list[int] = field(default_factory=list)
    head_crops: list[Crop] = field(default_factory=list)
    twin_rows: list[int] = field(default_factory=list)
    twin_crops: list[Crop] = field(default_factory=list)
    without_head: list[int] = field(default_factory=list)
    too_small: list[int] = field(default_factory=list)
    without_person: list[int] = field(default_factory=list)
    enlarged: int = 0


def subject_crops(dataset: Dataset, boxes: Boxes, params: CropParams) -> Pairs:
    """Cuts heads out for training and the persons around them for regularisation.

    Args:
        dataset: The pictures; those for regularisation are left as they are.
        boxes: Where heads and persons are.
        params: How they are cut out.

    Raises:
        InputError: No box has one of the head classes, or no crop is large enough.
    """
    heads, persons = _names(params.head_classes), _names(params.person_classes)
    _check_classes(boxes, heads, "head_classes", params.head_classes)
    plan, is_reg = _Plan(), dataset.is_reg
    for row in np.flatnonzero(~is_reg).tolist():
        _plan_row(plan, row, boxes.rows.get(row, ()), (int(dataset.width_px[row]), int(dataset.height_px[row])),
                  heads, persons, params)  # fmt: skip
    if not plan.head_rows:
        raise InputError(
            f"no head can be cut out: {counted(len(plan.without_head), 'picture')} without a head, "
            f"{len(plan.too_small)} too small for {params.train_width_px} x {params.train_height_px} px at max_upscale "
            f"{params.max_upscale:g}; lower the training size or the score, or raise max_upscale"
        )
    cut = f"{counted(len(plan.head_rows), 'head crop')} out of {counted(len(set(plan.head_rows)), 'picture')}"
    both = _table(dataset, plan, np.flatnonzero(is_reg).tolist(), params.prior_weight, cut)
    heads_end = len(plan.head_rows)
    persons_end = heads_end + len(plan.twin_rows)
    both, dropped = _without_tags(both, range(heads_end, persons_end), params.drop_from_twins)
    head_set = only_used_subsets(both.take(range(heads_end), note=f"{cut} alone"))
    person_set = None
    if plan.twin_rows:
        note = f"{counted(len(plan.twin_rows), 'person crop')} alone"
        person_set = only_used_subsets(both.take(range(heads_end, persons_end), note=note))
    report = "\n".join([_report(dataset, boxes, plan, params, cut), *dropped])
    return Pairs(heads=head_set, persons=person_set, both=both, report=report)


def head_crop(box: Box, size: tuple[int, int], *, aspect: float, share: float) -> Crop:
    """The part of a picture in which a head takes a share of the width or height, in given proportions.

    Args:
        box: The head, in px.
        size: Width and height of the picture, in px.
        aspect: Width divided by height of the crop.
        share: Share of the crop that the head takes in the direction in which it is larger.

    Returns:
        A crop inside the picture, moved where the head is near its edge, smaller where the picture is.
    """
    height = max((box[3] - box[1]) / share, (box[2] - box[0]) / share / aspect)
    height = min(height, size[1], size[0] / aspect)
    return _inside(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (height * aspect, height), size)


def person_crop(box: Box, size: tuple[int, int], *, margin: float) -> Crop:
    """The part of a picture that holds a person with some room around it, cut at the picture's edges."""
    across, down = (box[2] - box[0]) * margin, (box[3] - box[1]) * margin
    left, top = max(0, round(box[0] - across)), max(0, round(box[1] - down))
    right, bottom = min(size[0], round(box[2] + across)), min(size[1], round(box[3] + down))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _inside(centre: tuple[float, float], wanted: tuple[float, float], size: tuple[int, int]) -> Crop:
    width, height = (min(limit, max(1, round(length))) for length, limit in zip(wanted, size, strict=True))
    left = min(max(0, round(centre[0] - width / 2)), size[0] - width)
    top = min(max(0, round(centre[1] - height / 2)), size[1] - height)
    return left, top, left + width, top + height


def _plan_row(
    plan: _Plan,
    row: int,
    found: Sequence[Found],
    size: tuple[int, int],
    heads: Sequence[str],
    persons: Sequence[str],
    params: CropParams,
) -> None:
    chosen = _of_best_class(found, heads)
    if not chosen:
        plan.without_head.append(row)
        return
    if params.heads != "all":
        key = _area if params.heads == "largest" else _score
        chosen = [max(chosen, key=key)]
    people = _of_best_class(found, persons)
    aspect = params.train_width_px / params.train_height_px
    for head in chosen:
        crop = head_crop(head.box, size, aspect=aspect, share=params.head_share)
        upscale = max(params.train_width_px / (crop[2] - crop[0]), params.train_height_px / (crop[3] - crop[1]))
        if params.max_upscale and upscale > params.max_upscale:
            plan.too_small.append(row)
            continue
        plan.enlarged += upscale > 1.0
        plan.head_rows.append(row)
        plan.head_crops.append(crop)
        around = [person for person in people if _holds(person.box, head.box)]
        if around:
            plan.twin_rows.append(row)
            person = min(around, key=_area)
            plan.twin_crops.append(person_crop(_union(person.box, head.box), size, margin=params.person_margin))
        else:
            plan.without_person.append(row)
            if params.without_person == "whole picture":
                plan.twin_rows.append(row)
                plan.twin_crops.append((0, 0, *size))


def _of_best_class(found: Sequence[Found], names: Sequence[str]) -> list[Found]:
    """What is of the first class that occurs at all."""
    for name in names:
        if same := [item for item in found if item.name.casefold() == name]:
            return same
    return []


def _holds(person: Box, head: Box) -> bool:
    x, y = (head[0] + head[2]) / 2, (head[1] + head[3]) / 2
    return person[0] <= x <= person[2] and person[1] <= y <= person[3]


def _union(first: Box, second: Box) -> Box:
    return (min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3]))


def _area(item: Found) -> float:
    return (item.box[2] - item.box[0]) * (item.box[3] - item.box[1])


def _score(item: Found) -> float:
    return item.score


def _names(text: str) -> list[str]:
    return [name.strip().casefold() for name in text.split(",") if name.strip()]


def _check_classes(boxes: Boxes, wanted: Sequence[str], field_name: str, given: str) -> None:
    known = boxes.names()
    if not wanted:
        raise InputError(f"{field_name} is empty; name the classes, such as: {', '.join(list(known)[:5]) or 'head'}")
    if not known:
        raise InputError(f"nothing was found in any picture ({boxes.origin}); lower the least score")
    if not set(wanted) & {name.casefold() for name in known}:
        near = nearest_names(wanted[0], known)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        listed = ", ".join(f"{name} ({count})" for name, count in list(known.items())[:12])
        raise InputError(f"{field_name} is {given!r}, of which nothing was found{hint} Found were: {listed}")


def _table(dataset: Dataset, plan: _Plan, reg_rows: Sequence[int], prior_weight: float, cut: str) -> Dataset:
    """Head crops, then their twins, then the regularisation pictures that were there; each part with its subsets."""
    rows = [*plan.head_rows, *plan.twin_rows, *reg_rows]
    note = f"{cut}, {counted(len(plan.twin_rows), 'person crop')} for regularisation"
    table = dataset.take(rows, note=note)
    before = np.zeros((len(rows), 4), dtype=np.int32) if table.crops is None else table.crops
    crops = before.copy()
    cropped = len(plan.head_rows) + len(plan.twin_rows)
    new = np.array([*plan.head_crops, *plan.twin_crops], dtype=np.int32).reshape(-1, 4)
    crops[:cropped] = new + np.concatenate([before[:cropped, :2]] * 2, axis=1)  # a crop of a crop
    table = replace(table.with_crops(crops, note=note), history=table.history)
    count = len(dataset.subsets)
    as_reg = tuple(replace(subset, is_reg=True, prior_weight=prior_weight) for subset in dataset.subsets)
    index = table.subset_index.copy()
    index[len(plan.head_rows) : cropped] += count
    index[cropped:] += 2 * count
    return only_used_subsets(replace(table, subsets=(*dataset.subsets, *as_reg, *dataset.subsets), subset_index=index))


def _without_tags(dataset: Dataset, rows: Sequence[int], names: str) -> tuple[Dataset, list[str]]:
    """Some rows without some tags, and what was done in words."""
    wanted = [name.strip() for name in names.replace("\n", ",").split(",") if name.strip()]
    if not wanted or not len(rows):
        return dataset, []
    forms = {normal(name) for name in wanted}
    changed: dict[int, list[str]] = {}
    for row in rows:
        tags = dataset.tags.row(row)
        kept = [tag for tag in tags if normal(tag) not in forms]
        if len(kept) < len(tags):
            changed[row] = kept
    used = {form for row in rows for form in map(normal, dataset.tags.row(row))}
    lines = [f"Out of {counted(len(changed), 'caption')} of person crops: {', '.join(wanted)}."]
    lines += [f"  ! {matched_nothing(name, sorted(used))}" for name in wanted if normal(name) not in used]
    return dataset.with_tags(changed, note=f"{', '.join(wanted)} out of the captions of person crops"), lines


def _report(dataset: Dataset, boxes: Boxes, plan: _Plan, params: CropParams, cut: str) -> str:
    found = ", ".join(f"{count} {name}" for name, count in list(boxes.names().items())[:8])
    lines = [
        f"Subject crops: {cut}, {counted(len(plan.twin_rows), 'person crop')} as regularisation twins.",
        f"Boxes from {boxes.origin}: {found}.",
    ]
    if plan.enlarged:
        lines.append(
            f"{counted(plan.enlarged, 'head crop')} smaller than {params.train_width_px} x {params.train_height_px} "
            "px, which training enlarges."
        )
    for rows, words in (
        (plan.without_head, "without a head, left out"),
        (plan.too_small, f"with a head too small (enlarged by more than {params.max_upscale:g}), left out"),
        (plan.without_person, f"without a person around the head ({params.without_person} instead)"),
    ):
        if rows:
            named = ", ".join(printable(dataset.names[row]) for row in rows[:_MAX_LISTED])
            lines.append(
                f"  ! {counted(len(rows), 'picture')} {words}: {named}" + (" ..." if rows[_MAX_LISTED:] else "")
            )
    lines += [f"  ! {problem}" for problem in boxes.problems[:_MAX_LISTED]]
    for row, crop in list(zip(plan.head_rows, plan.head_crops, strict=True))[:5]:
        lines.append(
            f"  {printable(dataset.names[row])}: {crop[2] - crop[0]} x {crop[3] - crop[1]} px at {crop[0]}, {crop[1]}"
        )
    return "\n".join(lines)
