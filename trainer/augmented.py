"""A job's pictures as they are trained: at several resolutions, in buckets large enough; and what that costs."""

import numpy as np

from ..dataset.batches import KEEP, MERGE, BatchFacts, effective_repeats
from ..dataset.buckets import BucketAssignment, BucketRule, assign_buckets
from ..dataset.caption_forms import holds_wildcards
from ..dataset.resolutions import EACH, TieredRule, assign_tiers, spread
from ..dataset.table import Dataset
from ..dataset.words import counted
from .augment import AugmentParams
from .config import Job
from .latents import row_bytes


def bucket_rules(job: Job) -> tuple[BucketRule, ...]:
    """Returns the rules by which pictures get their buckets, one for each resolution, the smallest first.

    Raises:
        InputError: a resolution does not fit the sides of the buckets.
    """
    params = job.params
    return tuple(
        BucketRule(
            resolution_px=resolution_px,
            step_px=params.bucket_step_px,
            min_px=params.bucket_min_px,
            max_px=params.bucket_max_px,
            upscale=params.upscale,
        )
        for resolution_px in sorted({params.resolution_px, *job.augment.resolutions})
    )


def sized(job: Job) -> tuple[Dataset, BucketAssignment]:
    """Returns the job's pictures, once for each resolution they are trained at, and their buckets.

    Raises:
        InputError: as `bucket_rules`.
    """
    rules, dataset = bucket_rules(job), job.dataset
    if len(rules) > 1 and job.augment.resolution_use == EACH:
        dataset = spread(dataset, len(rules))
        buckets = assign_tiers(dataset, rules)
    else:
        buckets = assign_buckets(dataset, rules[0] if len(rules) == 1 else TieredRule(rules))
    if job.augment.small_batches == MERGE:
        buckets = buckets.merged(effective_repeats(dataset), job.params.batch_size)
    return dataset, buckets


def latent_bytes(augment: AugmentParams, pictures: Dataset, buckets: BucketAssignment) -> tuple[int, int]:
    """Returns how many latents are kept of pictures, and the bytes they take."""
    flips = np.array([subset.flip for subset in pictures.subsets], dtype=np.int64)[pictures.subset_index]
    per_picture = augment.variants * (1 + flips)
    return int(per_picture.sum()), int((row_bytes(buckets) * per_picture).sum())


def augment_lines(job: Job, pictures: Dataset, buckets: BucketAssignment, facts: BatchFacts) -> list[str]:
    """Returns what the plan says of variants, resolutions and small batches; nothing where all is plain."""
    lines, augment, rules = [], job.augment, job.augment.rules()
    resolutions = bucket_rules(job)
    if len(resolutions) > 1:
        shown = ", ".join(f"{rule.resolution_px}" for rule in resolutions)
        each = len(pictures) // len(job.dataset)
        how = f"every picture {each} times" if each > 1 else "every picture at the largest that it fills"
        lines.append(f"Resolutions: {shown} px; {how}.")
    if augment.small_batches != KEEP:
        lines.append(
            f"Small batches ({augment.small_batches}): {facts.partial} of {facts.batches} are not full, "
            f"{facts.alone} hold one picture, {counted(facts.repeated, 'picture')} shown again to fill up."
        )
    if rules.variants > 1:
        count, size_bytes = latent_bytes(augment, pictures, buckets)
        kinds = [f"cropped at random{f', up to {rules.max_zoom:g} x closer' if rules.max_zoom > 1 else ''}"]
        kinds = [*(kinds if rules.random_crop else []), *(["in other colours"] if rules.tints else [])]
        lines.append(
            f"Variants: {rules.variants} of each picture, {' and '.join(kinds)}; the cache of {count:,} latents takes "
            f"{size_bytes / 2**20:.1f} MiB."
        )
    if augment.caption_variants:
        lines.append(f"Captions: up to {counted(augment.caption_variants, 'form')} of each, encoded before the run.")
    return lines


def augment_warnings(
    job: Job, facts: BatchFacts, *, shown: float, cache_bytes: int, train_text_encoder: bool
) -> list[str]:
    """Returns what a person should know of the settings before the run.

    Args:
        job: with the pictures as they were given.
        facts: of the batches of an epoch.
        shown: how often a picture is shown at most.
        cache_bytes: what the latents take.
        train_text_encoder: whether it is trained.
    """
    found, augment = [], job.augment
    if augment.small_batches == KEEP and facts.alone:
        found.append(
            f"{facts.alone} of {facts.batches} batches of an epoch hold one picture instead of "
            f"{job.params.batch_size}; small_batches repeat or merge (node 'Augmentation') avoids that."
        )
    if augment.caption_variants and train_text_encoder:
        found.append(
            f"caption_variants is {augment.caption_variants}, but the text encoder is trained: it reads a new form of "
            "each caption every time."
        )
    if augment.wildcards and not holds_wildcards(job.dataset):
        found.append("wildcards is on, but no caption holds any, such as {red|blue}.")
    if augment.variants > max(1.0, shown):
        found.append(
            f"variants is {augment.variants}, but the run shows each picture at most {max(1, int(shown))} times: some "
            f"of the {cache_bytes / 2**20:,.1f} MiB in the cache are never seen; lower it, or train longer."
        )
    return found
