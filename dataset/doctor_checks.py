"""Checks of the doctor that need nothing but the table: names, sizes, captions, folders. One finding each."""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .batches import effective_repeats
from .doctor import ERROR, MAX_EXAMPLES, NOTE, WARNING, Check, Finding, Patient
from .normal import normals
from .table import CAPTION_FOLDER, CAPTION_NONE, Skipped
from .tiers import UPSCALED, bucket_rows, tier_shares
from .triggers import COUNTS, all_trigger_words, missing_and_late, rows_with_any, shared_words
from .words import counted, printable

_CUT_SHORT = "cut short"
_INTENDED = ("it is used for regularisation",)
_MIN_CLASS = 4
_MAX_LISTED = 12


def unusable_files(patient: Patient) -> Finding | None:
    """Pictures that were left out when the folder was opened."""
    files = [entry for entry in patient.dataset.skipped if not entry.path.endswith("/")]
    if not files:
        return None
    truncated = sum(_CUT_SHORT in entry.reason for entry in files)
    return Finding(
        check="unusable_files",
        severity=ERROR,
        title="Files left out, cut short or damaged" if truncated else "Files left out",
        files=len(files),
        advice="Fetch or save these pictures again, or delete them; every one is missing from training.",
        details=_reasons(files),
        examples=_paths(files),
    )


def ignored_folders(patient: Patient) -> Finding | None:
    """Folders that were not read, and why."""
    folders = [entry for entry in patient.dataset.skipped if entry.path.endswith("/") and entry.reason not in _INTENDED]
    if not folders:
        return None
    return Finding(
        check="ignored_folders",
        severity=WARNING,
        title="Folders that are not read",
        files=len(folders),
        advice="Rename it to N_name (10_cat: 10 repeats) to use it as kohya's scripts do, or choose the layout plain.",
        details=_reasons(folders),
        examples=_paths(folders),
        unit="folder",
    )


def odd_extensions(patient: Patient) -> Finding | None:
    """Endings such as .Jpg, which kohya's scripts do not find."""
    rows = []
    for row, name in enumerate(patient.names):
        ending = os.path.splitext(name)[1]
        if ending not in (ending.lower(), ending.upper()):
            rows.append(row)
    if not rows:
        return None
    advice = "Rename them to lower case if the folder is used elsewhere too; here they are read."
    return patient.finding("odd_extensions", NOTE, "Endings in mixed case, such as .Jpg", rows, advice)


def stem_collisions(patient: Patient) -> Finding | None:
    """Pictures of one name and different endings share a caption file."""
    by_stem: dict[tuple[int, str], list[int]] = {}
    subset = patient.dataset.subset_index.tolist()
    for row, name in enumerate(patient.names):
        by_stem.setdefault((subset[row], os.path.splitext(name)[0].casefold()), []).append(row)
    groups = [rows for rows in by_stem.values() if len(rows) > 1]
    if not groups:
        return None
    rows = [row for group in groups for row in group]
    details = [" = ".join(patient.shown(row) for row in group) for group in groups[:_MAX_LISTED]]
    advice = "Rename one of each: 1.png and 1.jpg have the same caption file 1.txt, so both get one caption."
    return patient.finding("stem_collisions", WARNING, "Pictures sharing a caption file", rows, advice, details=details)


def empty_captions(patient: Patient) -> Finding | None:
    """Pictures without any caption."""
    rows = np.flatnonzero(patient.dataset.tags.lengths == 0)
    prefixed = np.array([bool(subset.caption_prefix.strip()) for subset in patient.dataset.subsets])
    rows = rows[~prefixed[patient.dataset.subset_index[rows]]]
    if not len(rows):
        return None
    missing = int((patient.dataset.caption_source[rows] == CAPTION_NONE).sum())
    details = [f"without a caption file: {missing}, with an empty one: {len(rows) - missing}"]
    advice = (
        "Tag them; without captions everything in them sticks to every prompt (kohya's scripts stop at an empty file)."
    )
    return patient.finding("empty_captions", WARNING, "Pictures without a caption", rows, advice, details=details)


def folder_captions(patient: Patient) -> Finding | None:
    """Pictures that only have their folder's text."""
    rows = np.flatnonzero(patient.dataset.caption_source == CAPTION_FOLDER)
    if not len(rows):
        return None
    advice = "Fine for a first try; write captions to keep outfits, poses and backgrounds apart from the trigger."
    return patient.finding("folder_captions", NOTE, "Captioned by the folder's name alone", rows, advice)


def missing_trigger(patient: Patient) -> Finding | None:
    """Training pictures whose caption lacks the trigger."""
    return _trigger_finding(
        patient,
        late=False,
        check="missing_trigger",
        title="Trigger missing",
        advice="Add the trigger (caption_prefix of the folder does it for all): these pictures teach everybody else.",
    )


def late_trigger(patient: Patient) -> Finding | None:
    """Training pictures whose trigger is not kept at the front."""
    return _trigger_finding(
        patient,
        late=True,
        check="late_trigger",
        title="Trigger not first",
        advice="Move the trigger to the front, where keep_tokens holds it and no token limit cuts it off.",
    )


def _trigger_finding(patient: Patient, *, late: bool, check: str, title: str, advice: str) -> Finding | None:
    found: list[NDArray[np.int64]] = []
    details = []
    for entry in patient.triggers:
        rows = missing_and_late(patient.dataset, entry)[late]
        if len(rows):
            folder = patient.dataset.subsets[entry.subset].folder.name
            words = (" or " if entry.any_of else " and ").join(repr(word) for word in entry.words)
            details.append(f"{printable(folder)}: {words} ({entry.origin}), {counted(len(rows), 'picture')}")
            found.append(rows)
    if not found:
        return None
    return patient.finding(check, WARNING, title, np.concatenate(found), advice, details=details[:_MAX_LISTED])


def shared_trigger_words(patient: Patient) -> Finding | None:
    """Triggers that blend because they share a word."""
    known = {entry.subset for entry in patient.triggers}
    concepts = [
        subset.concept
        for number, subset in enumerate(patient.dataset.subsets)
        if not subset.is_reg and number not in known
    ]
    shared = shared_words(all_trigger_words(patient.triggers, concepts))
    if not shared:
        return None
    names = sorted({name for entry in shared for name in entry.triggers})
    rows = np.flatnonzero(rows_with_any(patient.dataset, names) & ~patient.is_reg)
    details = [f"{entry.word!r}: {', '.join(entry.triggers)}" for entry in shared[:_MAX_LISTED]]
    advice = "Give them names without a common word or beginning: triggers that share one blend into each other."
    return patient.finding("shared_trigger_words", WARNING, "Triggers that share a word", rows, advice, details=details)


def tags_on_all(patient: Patient) -> Finding | None:
    """Tags on every picture of a folder."""
    dataset = patient.dataset
    rows_of = [np.flatnonzero(dataset.subset_index == number) for number in range(len(dataset.subsets))]
    triggers: dict[int, set[str]] = {number: set() for number in range(len(dataset.subsets))}
    for entry in patient.triggers:
        triggers[entry.subset] = set(normals(tuple(entry.words)))
    spelled = normals(dataset.tags.vocabulary)
    details, concerned = [], []
    everywhere: set[int] | None = None
    for number, rows in enumerate(rows_of):
        rows = rows[dataset.tags.lengths[rows] > 0]
        if len(rows) < _MIN_CLASS or dataset.subsets[number].is_reg:
            continue
        on_every = _on_every(patient, rows)
        found = {tag for tag in on_every if spelled[tag] not in triggers[number] and not COUNTS.match(spelled[tag])}
        everywhere = found if everywhere is None else everywhere & found
        if found:
            names = ", ".join(sorted(dataset.tags.vocabulary[tag] for tag in found)[:_MAX_LISTED])
            details.append(f"{printable(dataset.subsets[number].folder.name)} ({len(rows)}): {names}")
            concerned.append(rows)
    if not details:
        return None
    severity = NOTE
    extra: tuple[str, ...] = ()
    if everywhere and len(concerned) > 1:
        severity = WARNING
        names = ", ".join(sorted(dataset.tags.vocabulary[tag] for tag in everywhere)[:_MAX_LISTED])
        extra = (f"on every picture of every training folder: {names}",)
    advice = (
        "Take such a tag off unless it is meant as part of the trigger: what is always there is learnt as one thing "
        "with it."
    )
    lines = (*extra, *details[:_MAX_LISTED])
    return patient.finding("tags_on_all", severity, "Tags on 100 % of a folder", np.concatenate(concerned), advice,
                           details=lines)  # fmt: skip


def _on_every(patient: Patient, rows: NDArray[np.int64]) -> list[int]:
    """Ids of tags that every one of some pictures has; only tags frequent enough are looked at closely."""
    column = patient.dataset.tags.take(rows).deduplicated()
    return [int(tag) for tag in np.flatnonzero(column.counts() == len(rows))]


def doubled_tags(patient: Patient) -> Finding | None:
    """Captions that hold a tag twice, in whatever spelling."""
    column = patient.dataset.tags
    forms: dict[str, int] = {}
    table = np.array([forms.setdefault(form, len(forms)) for form in normals(column.vocabulary)], dtype=np.int32)
    same = column.translated(table, tuple(forms)).deduplicated()
    rows = np.flatnonzero(same.lengths < column.lengths)
    if not len(rows):
        return None
    advice = "Deduplicate the tags: a doubled tag takes tokens and weighs twice."
    return patient.finding("doubled_tags", NOTE, "Captions with a tag twice", rows, advice)


def spelling_variants(patient: Patient) -> Finding | None:
    """Tags that differ only in case, underscores or escapes."""
    column = patient.dataset.tags
    counts = column.counts()
    by_form: dict[str, list[int]] = {}
    for number, form in enumerate(normals(column.vocabulary)):
        if counts[number]:
            by_form.setdefault(form, []).append(number)
    groups = [ids for ids in by_form.values() if len(ids) > 1]
    if not groups:
        return None
    groups.sort(key=lambda ids: -int(min(counts[ids])))
    rare = np.zeros(len(counts), dtype=bool)
    for ids in groups:
        rare[ids] = True
        rare[max(ids, key=lambda number: counts[number])] = False
    places = np.flatnonzero(rare[column.ids])
    rows = np.unique(np.searchsorted(column.offsets, places, side="right") - 1)
    details = [" = ".join(f"{column.vocabulary[tag]} ({counts[tag]})" for tag in ids) for ids in groups[:_MAX_LISTED]]
    advice = "Normalise the tags (one spelling each): every spelling is learnt on its own."
    return patient.finding("spelling_variants", NOTE, "Tags in several spellings", rows, advice, details=details)


def resolution_tiers(patient: Patient) -> Finding | None:
    """Pictures that are enlarged, with the shares of all tiers."""
    fits, train = patient.fits, ~patient.is_reg
    rows = np.flatnonzero(fits.tier == UPSCALED)
    rows = rows[np.argsort(-fits.scale[rows], kind="stable")]
    if not len(rows):
        return None
    details = []
    for name, chosen in (("training", train), ("regularisation", patient.is_reg)):
        if chosen.any():
            details.append(f"{name}: {tier_shares(fits, chosen)}")
    details.append(f"largest enlargement: {fits.scale[rows[0]]:.2f}x ({patient.shown(int(rows[0]))})")
    share = len(rows) / len(patient.dataset)
    advice = (
        "Leave them out or find larger versions; enlarged pictures teach blur. Or train at a lower resolution."
        if patient.params.upscale
        else "They keep their size and get small buckets of their own; leave them out or train at a lower resolution."
    )
    severity = WARNING if share >= 0.05 else NOTE
    return patient.finding("resolution_tiers", severity, "Pictures smaller than the training size", rows, advice,
                           details=details)  # fmt: skip


def crop_loss(patient: Patient) -> Finding | None:
    """Pictures that lose much to their bucket's crop, per bucket."""
    fits, limit = patient.fits, patient.params.max_crop_loss
    rows = np.flatnonzero(fits.loss > limit)
    if not len(rows):
        return None
    rows = rows[np.argsort(-fits.loss[rows], kind="stable")]
    buckets = bucket_rows(patient.dataset, fits, patient.params.batch_size)
    worst = sorted((row for row in buckets if row.max_loss > limit), key=lambda row: -row.max_loss)
    details = [
        f"{row.size[0]} x {row.size[1]} px: {counted(row.pictures, 'picture')}, mean loss {row.mean_loss:.0%}, "
        f"worst {row.max_loss:.0%}"
        for row in worst[:_MAX_LISTED]
    ]
    advice = "Crop them yourself around the subject (or set focal points), or allow longer buckets (bucket_max_px)."
    title = f"Pictures that lose more than {limit:.0%} to the crop"
    return patient.finding("crop_loss", WARNING, title, rows, advice, details=details)


def batches_of_one(patient: Patient) -> Finding | None:
    """Batches with a single picture, where a batch should hold more."""
    size = patient.params.batch_size
    if size < 2:
        return None
    buckets = bucket_rows(patient.dataset, patient.fits, size)
    single = [number for number, row in enumerate(buckets) if row.partial == 1]
    if not single:
        return None
    rows = np.flatnonzero(np.isin(patient.fits.buckets.index, single))
    batches, partial = sum(row.batches for row in buckets), sum(row.partial > 0 for row in buckets)
    details = [f"{len(single)} of {_batches(batches)} per epoch hold one picture, {partial} are not full"]
    details += [
        f"{buckets[number].size[0]} x {buckets[number].size[1]} px: {buckets[number].seen} seen per epoch"
        for number in single[:_MAX_LISTED]
    ]
    advice = "Crop the few odd shapes to a common one, use larger bucket steps, or a repeat count that fills batches."
    return patient.finding("batches_of_one", NOTE, f"Buckets that end in a batch of one (of {size})", rows, advice,
                           details=details)  # fmt: skip


def high_repeats(patient: Patient) -> Finding | None:
    """Folders whose few pictures are seen very often."""
    dataset, limit = patient.dataset, patient.params.warn_repeats
    numbers = [number for number, subset in enumerate(dataset.subsets) if subset.repeats >= limit and not subset.is_reg]
    rows = np.flatnonzero(np.isin(dataset.subset_index, numbers))
    if not len(rows):
        return None
    details = [
        f"{printable(dataset.subsets[number].folder.name)}: {dataset.subsets[number].repeats} times "
        f"{counted(int((dataset.subset_index == number).sum()), 'picture')}"
        for number in numbers[:_MAX_LISTED]
    ]
    advice = (
        "Find more pictures, cap the repeats, or give the folder a smaller weight: few pictures are learnt by heart."
    )
    return patient.finding("high_repeats", WARNING, f"Seen {limit} times or more per epoch", rows, advice,
                           details=details)  # fmt: skip


def surplus_reg(patient: Patient) -> Finding | None:
    """Regularisation pictures that are never seen."""
    rows = np.flatnonzero(effective_repeats(patient.dataset) == 0)
    if not len(rows):
        return None
    advice = (
        "Raise the training folders' repeats or keep fewer: regularisation is cut to the number of training pictures."
    )
    return patient.finding("surplus_reg", NOTE, "Regularisation pictures never seen", rows, advice)


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count} batches"


def _reasons(entries: Sequence[Skipped]) -> tuple[str, ...]:
    counts = Counter(entry.reason for entry in entries).most_common(_MAX_LISTED)
    return tuple(f"{count} x {reason}" for reason, count in counts)


def _paths(entries: Sequence[Skipped]) -> tuple[str, ...]:
    return tuple(printable(entry.path) for entry in entries[:MAX_EXAMPLES])


TABLE_CHECKS = (
    Check(name="unusable_files", looks_for="files left out", run=unusable_files),
    Check(name="ignored_folders", looks_for="ignored folders", run=ignored_folders),
    Check(name="odd_extensions", looks_for="endings in mixed case", run=odd_extensions),
    Check(name="stem_collisions", looks_for="shared caption files", run=stem_collisions),
    Check(name="empty_captions", looks_for="empty captions", run=empty_captions),
    Check(name="folder_captions", looks_for="captions from folder names", run=folder_captions),
    Check(name="missing_trigger", looks_for="missing triggers", run=missing_trigger),
    Check(name="late_trigger", looks_for="triggers not first", run=late_trigger),
    Check(name="shared_trigger_words", looks_for="triggers sharing a word", run=shared_trigger_words),
    Check(name="tags_on_all", looks_for="tags on all of a folder", run=tags_on_all),
    Check(name="doubled_tags", looks_for="doubled tags", run=doubled_tags),
    Check(name="spelling_variants", looks_for="spellings of one tag", run=spelling_variants),
    Check(name="resolution_tiers", looks_for="pictures that are too small", run=resolution_tiers),
    Check(name="crop_loss", looks_for="heavy crops", run=crop_loss),
    Check(name="batches_of_one", looks_for="batches of one", run=batches_of_one),
    Check(name="high_repeats", looks_for="high repeats", run=high_repeats),
    Check(name="surplus_reg", looks_for="unused regularisation pictures", run=surplus_reg),
)
