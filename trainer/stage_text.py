"""What is said of the stages of a run: in its plan, its manifest and its LoRA files."""

from collections.abc import Sequence
from typing import Any

from ..dataset.batches import effective_repeats
from ..dataset.table import Dataset
from .augmented import augment_lines
from .optimizers._spec import OptimizerParams
from .staged import PARTS, Stage

SKIPPED_SHOWN = 3
BUCKETS_SHOWN = 12


def seen_images(dataset: Dataset, *, is_reg: bool) -> int:
    """Returns the pictures of an epoch after repeats, of one of the two kinds."""
    return int(effective_repeats(dataset)[dataset.is_reg == is_reg].sum())


def stages_lines(
    stages: Sequence[Stage], optimizer: OptimizerParams, *, train_unet: bool, train_text_encoder: bool
) -> list[str]:
    """Returns pictures, buckets and batches of a run; of one in stages, those of each under its heading."""
    if len(stages) == 1:
        return _data_lines(stages[0])
    lines = []
    trained = {"unet": train_unet, "text_encoder": train_text_encoder}
    rates = {"unet": optimizer.lr_unet, "text_encoder": optimizer.lr_text_encoder}
    for stage in stages:
        shown = ", ".join(
            f"{rates[part] * stage.lr_factors[part]:g} ({title})" for part, title in PARTS.items() if trained[part]
        )
        facts = [f"steps {stage.first_step + 1} to {stage.end_step} on {stage.job.dataset.root.name}"]
        facts.append(f"{stage.job.params.resolution_px} px, learning rate {shown}")
        if stage.number > 1:
            facts.append(f"the optimizer {'begins anew' if stage.begins_anew else 'carries on'}")
        facts.append(f"the schedule runs over {stage.schedule_over}")
        lines.append(f"Stage {stage.number} of {len(stages)}: {'; '.join(facts)}.")
        lines.extend(f"  {line}" for line in _data_lines(stage))
    return lines


def stages_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Returns the stages as plain JSON values, for the manifest and the metadata of LoRA files."""
    return [
        {
            "steps": stage.steps,
            "end_step": stage.end_step,
            "dataset": stage.job.dataset.root.name,
            "num_images": len(stage.job.dataset),
            "resolution_px": stage.job.params.resolution_px,
            "batch_size": stage.job.params.batch_size,
            "lr_factors": dict(stage.lr_factors),
            "optimizer_begins_anew": stage.begins_anew,
            "schedule_over": stage.schedule_over,
        }
        for stage in stages
    ]


def _data_lines(stage: Stage) -> list[str]:
    dataset, params = stage.job.dataset, stage.job.params
    images = params.accumulation_images
    update = f"at least {images} pictures" if images else f"{stage.batches_per_update:g}"
    return [
        f"Pictures: {int((~dataset.is_reg).sum())}, {seen_images(dataset, is_reg=False)} after repeats, and "
        f"{seen_images(dataset, is_reg=True)} for regularisation; {_skipped_text(dataset)}.",
        f"Buckets: {_buckets_text(stage)}.",
        f"Batches: {stage.batches_per_epoch} of up to {params.batch_size} in an epoch, {update} for an update: "
        f"{stage.batches_per_epoch / stage.batches_per_update:.4g} steps in an epoch, {stage.epochs:.3g} epochs.",
        *augment_lines(stage.job, stage.pictures, stage.buckets, stage.batch_facts),
    ]


def _skipped_text(dataset: Dataset) -> str:
    skipped = dataset.skipped
    shown = "; ".join(str(entry) for entry in skipped[-SKIPPED_SHOWN:])
    return f"{len(skipped)} files left out" + (f" ({shown})" if shown else "")


def _buckets_text(stage: Stage) -> str:
    counts = stage.buckets.counts(effective_repeats(stage.pictures))
    sizes = [f"{w}x{h} px: {n}" for (w, h), n in zip(stage.buckets.sizes, counts, strict=True)]
    shown = ", ".join(sizes[:BUCKETS_SHOWN])
    return shown if len(sizes) <= BUCKETS_SHOWN else f"{shown} and {len(sizes) - BUCKETS_SHOWN} more"
