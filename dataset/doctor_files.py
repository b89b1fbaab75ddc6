"""Checks of the doctor that open files: headers for EXIF and alpha, pixels for damage, transparency and duplicates."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from .doctor import ERROR, NOTE, WARNING, Check, Finding, Patient
from .duplicates import DuplicateGroup, duplicate_groups
from .headers import FILES_AT_ONCE, WORKERS, read_headers
from .images import BadPicture
from .pixels import picture_file
from .words import counted

_CLEAR = 0.01
"""A smaller transparent share is an antialiased edge."""
_MAX_LISTED = 12


def header_flags(patient: Patient) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """EXIF orientation (1..8) and whether there is an alpha channel, of every picture; read or remembered once."""
    if patient.header_flags is not None:
        return patient.header_flags
    dataset = patient.dataset
    orientation, has_alpha = np.ones(len(dataset), dtype=np.uint8), np.zeros(len(dataset), dtype=bool)
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for start in range(0, len(dataset), FILES_AT_ONCE):
            patient.progress.update(start, len(dataset), "Reading headers")
            rows = range(start, min(start + FILES_AT_ONCE, len(dataset)))
            files = [picture_file(dataset, row) for row in rows]
            for row, header in zip(rows, read_headers(files, index=patient.index, pool=pool), strict=True):
                if not isinstance(header, BadPicture):
                    orientation[row], has_alpha[row] = header.orientation, header.has_alpha
    patient.header_flags = (orientation, has_alpha)
    return orientation, has_alpha


def exif_orientation(patient: Patient) -> Finding | None:
    """Pictures that lie on their side in the file."""
    orientation, _ = header_flags(patient)
    rows = np.flatnonzero(orientation > 1)
    if not len(rows):
        return None
    counts = np.bincount(orientation[rows], minlength=9)
    details = [f"orientation {value}: {count}" for value, count in enumerate(counts) if count]
    advice = "Here they are turned upright; kohya's scripts and many viewers do not turn them, so save them upright."
    return patient.finding("exif_orientation", NOTE, "Turned by EXIF", rows, advice, details=details)


def alpha_channel(patient: Patient) -> Finding | None:
    """Pictures with an alpha channel, by their header."""
    _, has_alpha = header_flags(patient)
    rows = np.flatnonzero(has_alpha)
    if not len(rows):
        return None
    details = [f"for regularisation: {int(patient.is_reg[rows].sum())}"] if patient.is_reg.any() else []
    if patient.params.look_at_pixels:
        shares = np.nan_to_num(patient.pixels.transparent[rows])
        clear = int((shares > _CLEAR).sum())
        order = np.argsort(-shares, kind="stable")
        rows = rows[order]
        details.append(
            f"really transparent: {clear} of {len(rows)}, mean {float(shares.mean()):.0%} of the area, most "
            f"{float(shares.max()):.0%}"
        )
        details += [f"{patient.shown(int(row))}: {patient.pixels.transparent[row]:.0%} transparent"
                    for row in rows[:_MAX_LISTED] if patient.pixels.transparent[row] > _CLEAR]  # fmt: skip
        if not clear:
            advice = "Nothing is transparent in them; saving without alpha makes them smaller."
            return patient.finding("alpha_channel", NOTE, "Alpha channel", rows, advice, details=details)
    advice = (
        "White is laid under them. For an even ground put them on the background you want, or use the alpha as a mask; "
        "as regularisation, cut-out subjects teach nothing about scenes."
    )
    severity = WARNING if bool(patient.is_reg[rows].any()) or patient.params.look_at_pixels else NOTE
    return patient.finding("alpha_channel", severity, "Transparency", rows, advice, details=details)


def damaged_pixels(patient: Patient) -> Finding | None:
    """Pictures whose header is sound and whose pixels are not."""
    damaged = patient.pixels.damaged
    if not damaged:
        return None
    rows = sorted(damaged)
    details = [f"{patient.shown(row)}: {damaged[row]}" for row in rows[:_MAX_LISTED]]
    advice = "Fetch or save them again: training stops at them, or leaves them out, when it first decodes them."
    return patient.finding("damaged_pixels", ERROR, "Damaged inside", rows, advice, details=details)


def duplicates_train(patient: Patient) -> Finding | None:
    """Near-duplicates among the training pictures."""
    return _duplicates(patient, "duplicates_train", "Near-duplicates in training", ~patient.is_reg)


def duplicates_reg(patient: Patient) -> Finding | None:
    """Near-duplicates among the regularisation pictures."""
    return _duplicates(patient, "duplicates_reg", "Near-duplicates in regularisation", patient.is_reg)


def duplicates_across(patient: Patient) -> Finding | None:
    """Training pictures that are in the regularisation set too."""
    if not patient.is_reg.any():
        return None
    groups = _groups(patient, np.ones(len(patient.dataset), dtype=bool))
    mixed = [group for group in groups if len({bool(patient.is_reg[row]) for row in group.rows}) == 2]
    if not mixed:
        return None
    advice = "Take them out of the regularisation set: it would teach the class what only the trigger should mean."
    return _group_finding(patient, "duplicates_across", WARNING, "Near-duplicates across training and regularisation",
                          mixed, advice)  # fmt: skip


def _duplicates(patient: Patient, check: str, title: str, chosen: NDArray[np.bool_]) -> Finding | None:
    groups = _groups(patient, chosen)
    if not groups:
        return None
    advice = "Keep the best of each group, or lower its repeats: what is there several times is learnt several times."
    extra = sum(len(group.rows) - 1 for group in groups)
    severity = WARNING if extra >= 0.05 * int(chosen.sum()) else NOTE
    return _group_finding(patient, check, severity, title, groups, advice)


def _groups(patient: Patient, chosen: NDArray[np.bool_]) -> list[DuplicateGroup]:
    usable = chosen.copy()
    usable[list(patient.pixels.damaged)] = False
    rows = np.flatnonzero(usable)
    found = duplicate_groups(
        patient.pixels.hashes[rows],
        patient.params.duplicate_distance,
        colours=patient.pixels.colours[rows],
        progress=patient.progress,
    )
    return [
        DuplicateGroup(rows=tuple(int(rows[place]) for place in group.rows), distance=group.distance) for group in found
    ]


def _group_finding(
    patient: Patient, check: str, severity: str, title: str, groups: list[DuplicateGroup], advice: str
) -> Finding:
    rows = [row for group in groups for row in group.rows]
    details = [f"{counted(len(groups), 'group')}, the largest of {counted(len(groups[0].rows), 'picture')}"]
    for group in groups[:_MAX_LISTED]:
        names = " = ".join(patient.shown(row) for row in group.rows[:4])
        more = f" and {len(group.rows) - 4} more" if len(group.rows) > 4 else ""
        details.append(f"{names}{more} ({counted(group.distance, 'bit')} apart)")
    return patient.finding(check, severity, title, rows, advice, details=details)


HEADER_CHECKS = (
    Check(name="exif_orientation", looks_for="EXIF rotation", run=exif_orientation),
    Check(name="alpha_channel", looks_for="transparency", run=alpha_channel),
)

PIXEL_CHECKS = (
    Check(name="damaged_pixels", looks_for="damage inside files", run=damaged_pixels),
    Check(name="duplicates_train", looks_for="near-duplicates in training", run=duplicates_train),
    Check(name="duplicates_reg", looks_for="near-duplicates in regularisation", run=duplicates_reg),
    Check(name="duplicates_across", looks_for="pictures in both sets", run=duplicates_across),
)
