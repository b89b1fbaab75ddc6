"""Training a LoRA from a job: find or make the run, load, cache, train, export; and going on with a finished run."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..core.errors import InputError, TrainingError
from ..core.files import sha256_file
from ..core.index import Index
from ..core.params import Choice, choice_from_json
from ..core.progress import Progress, SilentProgress
from ..dataset.table import Dataset
from ..families._base import Base, identity_hash
from ..families._spec import get_family
from ..networks._spec import networks
from .augment import AugmentParams
from .caches import ContentIndex, index_of
from .caption_params import CaptionParams, steps_of
from .checkpoints import Checkpoint, list_checkpoints, load_state
from .config import Job, TrainParams
from .kohya_latents import KohyaLatents, find_files
from .manifest import data_hash, make_manifest
from .masks import LatentMasks, MaskRules, mask_contents
from .names import hash_of
from .objectives._spec import objectives
from .optimizers._spec import OptimizerParams, optimizers
from .plan import Checked, check_job
from .precision import OutOfMemory
from .recorder import standing_of
from .resuming import Start
from .run import RunFolder, RunInfo, RunRef, check_writable, find_runs, new_run, open_run, publish_file, runs_folder
from .session import Places, RunResult, train_held
from .staged import Stage
from .starting import StartLora

Around: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]

__all__ = ["Places", "RunResult", "continue_run", "runs_of", "train_lora"]


def train_lora(
    job: Job,
    *,
    output_dir: Path,
    loras_dir: Path,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    prompt: Mapping[str, Any] | None = None,
    around: Around = contextlib.nullcontext,
    index: Index | None = None,
) -> RunResult:
    """Trains a LoRA, or returns the finished run of the very same job.

    May be called inside ``torch.inference_mode()``. Everything is checked before the first step. When ``progress``
    cancels, the state is saved and its exception raised unchanged; the same call then goes on where it stopped.

    Args:
        job: what to train.
        output_dir: runs go to ``atelier/runs`` below it.
        loras_dir: LoRAs are published to ``atelier/<run name>`` below it.
        cache_dir: latents.
        device: where to train.
        progress: shows, and cancels.
        prompt: the graph the job comes from, kept in the manifest.
        around: entered only when there is something to train, once all that needs no model is checked; a host frees
            its own models in it.
        index: remembers content hashes; by default an index of its own in ``cache_dir``.

    Raises:
        InputError: settings that do not fit; found before any work.
        StorageError: a folder cannot be written, or the disk is full.
        TrainingError: a value is not finite, nothing was learned, or the memory is not enough.
    """
    places = Places(output_dir=Path(output_dir), loras_dir=Path(loras_dir), cache_dir=Path(cache_dir), index=index)
    device = torch.device(device)
    with _own_torch_state(device):
        return _train_lora(job, places, device, progress or SilentProgress(), prompt, around, start=None)


def continue_run(
    run: RunRef,
    *,
    base: Base,
    dataset: Dataset,
    extra_steps: int,
    output_dir: Path,
    loras_dir: Path,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    prompt: Mapping[str, Any] | None = None,
    optimizer: Choice | None = None,
    run_name: str = "",
    mode: str = "resume",
    around: Around = contextlib.nullcontext,
    index: Index | None = None,
) -> RunResult:
    """Trains a run further as a child run; the parent is only read.

    With a constant schedule, n steps continued by m are the same numbers as n + m steps at once.

    Args:
        run: the parent; its checkpoint at ``run.step`` is the start.
        base: the parent's base model.
        dataset: the parent's or another data set.
        extra_steps: steps after ``run.step``.
        output_dir: as for ``train_lora``, like all that are not named here.
        loras_dir: see there.
        cache_dir: see there.
        device: see there.
        progress: see there.
        prompt: see there.
        optimizer: settings to use from here on; None keeps the parent's.
        run_name: name of the child; left empty it is made from the parent's name.
        mode: as in TrainParams.
        around: see ``train_lora``.
        index: see there.

    Raises:
        InputError: the parent has no such checkpoint, or the base is another one.
        StorageError: see ``train_lora``.
        TrainingError: see there.
    """
    if extra_steps < 1:
        raise InputError(f"extra_steps is {extra_steps}: give at least 1 step to go on.")
    parent = open_run(Path(run.folder))
    checkpoint = _checkpoint_at(parent, run.step)
    accumulation_steps = int(parent.manifest["config"]["train"]["gradient_accumulation_steps"])
    standing = standing_of(checkpoint, accumulation_steps=accumulation_steps)
    job = _child_job(parent, checkpoint, base, dataset, extra_steps, optimizer, run_name=run_name, mode=mode)
    places = Places(output_dir=Path(output_dir), loras_dir=Path(loras_dir), cache_dir=Path(cache_dir), index=index)
    device = torch.device(device)
    with _own_torch_state(device):
        progress = progress or SilentProgress()
        with index_of(places.cache_dir, places.index, progress) as own:
            base_id = identity_hash(base, ContentIndex(own).base_hash(base, progress), progress)
        told = parent.manifest["base"]
        if base_id != told.get("identity", told["sha256"]):
            raise InputError(
                f"The run {parent.name} was trained on {told['name']}, and {base.name} is another model, or has "
                "another VAE, prediction or LoRA merged in: open the same base to continue."
            )
        start = Start(
            step=checkpoint.step,
            state=load_state(checkpoint),
            images_seen=standing.images_seen,
            batches_done=standing.batches_done,
            optimizer_params=_parent_optimizer(parent, job),
        )
        return _train_lora(job, places, device, progress, prompt, around, start=start)


@contextlib.contextmanager
def _own_torch_state(device: torch.device) -> Iterator[None]:
    """Leaves inference mode, keeps the caller's random state, and gives all memory back at the end."""
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            yield
    except OutOfMemory as cause:
        raise TrainingError(
            "The device's memory is not enough: lower batch_size or resolution_px, switch gradient_checkpointing on, "
            "or use the precision bf16."
        ) from cause
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _train_lora(
    job: Job,
    places: Places,
    device: torch.device,
    progress: Progress,
    prompt: Mapping[str, Any] | None,
    around: Around,
    *,
    start: Start | None,
) -> RunResult:
    checked = check_job(job)
    check_writable(places.output_dir, "output")
    check_writable(places.loras_dir, "loras")
    check_writable(places.cache_dir, "cache")
    progress.status("reading the base model and the pictures")
    with index_of(places.cache_dir, places.index, progress) as opened:
        index = ContentIndex(opened)
        base_sha256 = index.base_hash(job.base, progress)
        job, contents = _decodable(checked, index, progress)
        if job is not checked.job:
            checked = check_job(job)
        datasets = [stage.job.dataset for stage in checked.stages]
        mask_hashes = [mask_contents(*pair, index, progress) for pair in zip(datasets, contents, strict=True)]
    hashes = [data_hash(*one) for one in zip(datasets, contents, mask_hashes, strict=True)]
    content_hash = hashes[0] if not job.stages else hash_of(hashes)
    contents = [
        found * (len(stage.pictures) // len(found)) for stage, found in zip(checked.stages, contents, strict=True)
    ]
    given = [_kohya_latents(stage, found, progress) for stage, found in zip(checked.stages, contents, strict=True)]
    if job.augment.kohya_latents:
        content_hash = hash_of([content_hash, *(found.digest() for found in given)])
    base_id = identity_hash(job.base, base_sha256, progress)
    key = job.key(base_hash=base_id, data_hash=content_hash)
    folder, finished = _find(job, places, key)
    if finished is not None:
        return _finished_result(job, finished, places)
    masks, notes = _read_masks(checked, mask_hashes, places, device, progress)
    checked = replace(checked, warnings=(*checked.warnings, *notes))
    if folder is None:
        manifest = make_manifest(
            checked, base_sha256=base_sha256, base_id=base_id, content_hash=content_hash, prompt=prompt
        )
        folder = new_run(places.output_dir, name=job.run_name(), key=key, manifest=manifest)
    with RunFolder.held(folder) as run, around():
        # The name of an interrupted run stays as it was begun.
        checked = replace(checked, job=job.with_params(run_name=str(run.manifest["run_name"])))
        return train_held(
            checked, run, places, device, progress,
            base_sha256=base_sha256, contents=contents, masks=masks, start=start, given=given,
        )  # fmt: skip


def _kohya_latents(stage: Stage, contents: Sequence[str], progress: Progress) -> KohyaLatents:
    """The files of kohya's scripts beside a stage's pictures, where they are wanted."""
    if not stage.job.augment.kohya_latents:
        return KohyaLatents()
    family = get_family(stage.job.base.family)
    return find_files(stage.pictures, stage.buckets, contents, family, progress)


def _decodable(checked: Checked, index: ContentIndex, progress: Progress) -> tuple[Job, list[list[str]]]:
    """Returns the job without the pictures that cannot be decoded, which are told, and the contents of every stage."""
    found = {id(dataset): index.contents(dataset, progress) for dataset in checked.datasets}
    hashes = [
        [value for number, value in enumerate(contents.hashes) if number not in contents.damaged]
        for contents in (found[id(stage.job.dataset)] for stage in checked.stages)
    ]
    if not any(contents.damaged for contents in found.values()):
        return checked.job, hashes
    left = {id(dataset): dataset.without(found[id(dataset)].damaged) for dataset in checked.datasets}
    for dataset in checked.datasets:
        for skipped in left[id(dataset)].skipped[len(dataset.skipped) :]:
            progress.status(f"left out {skipped}")
    job = checked.job
    stages = tuple(replace(stage, dataset=left.get(id(stage.dataset))) for stage in job.stages)
    return replace(job, dataset=left.get(id(job.dataset), job.dataset), stages=stages), hashes


def _read_masks(
    checked: Checked, contents: Sequence[Sequence[str]], places: Places, device: torch.device, progress: Progress
) -> tuple[list[LatentMasks | None], list[str]]:
    """Reads the masks of every stage; returns them, and what is to be said of them.

    Raises:
        InputError: a mask cannot be used, or nothing would be learned under them.
    """
    params = checked.job.params
    rules = MaskRules(unmasked_weight=params.unmasked_weight, normalize=params.normalize_masks)
    found: list[LatentMasks | None] = []
    notes: list[str] = []
    with index_of(places.cache_dir, places.index, progress) as opened:
        for stage, hashes in zip(checked.stages, contents, strict=True):
            masks = None
            if any(hashes):
                seen = list(hashes) * (len(stage.pictures) // len(hashes))
                masks = LatentMasks(stage.pictures, buckets=stage.buckets, contents=seen, rules=rules, device=device)
                notes += [note for note in masks.fill(ContentIndex(opened), progress) if note not in notes]
            found.append(masks)
    return found, notes


def _find(job: Job, places: Places, key: str) -> tuple[Path | None, RunInfo | None]:
    """Returns (folder to go on with or None, finished run or None), as the job's mode wants it."""
    if job.params.mode == "restart":
        return None, None
    runs = find_runs(places.output_dir, key)
    finished = [run for run in runs if run.finished]
    if finished:
        return None, finished[-1]
    return (runs[-1].folder if runs and job.params.mode == "resume" else None), None


def _finished_result(job: Job, run: RunInfo, places: Places) -> RunResult:
    """Returns the result of a run that is there; its LoRA is published again if it was deleted or is renamed now."""
    if run.lora_path is None:
        raise RuntimeError(f"the run {run.folder.name} is not finished")
    name = job.run_name()
    path = publish_file(run.lora_path, places.loras_dir / "atelier" / name, name)
    step = run.checkpoints[-1][0]
    return RunResult(
        run=RunRef(folder=run.folder, key=run.key, step=step),
        lora_path=path,
        steps_done=0,
        seconds_training=float(run.status.get("seconds_training", 0.0)),
        report=f"This run is already there and was not trained again ({run.folder.name}).\n"
        + str(run.status.get("report", "")),
        losses=tuple(row["loss"] for row in run.rows),
    )


def _parent_optimizer(parent: RunInfo, job: Job) -> OptimizerParams | None:
    """Returns the parent's optimizer settings if it is the same optimizer, whose state can be taken over."""
    choice = choice_from_json(parent.manifest["config"]["optimizer"], optimizers())
    same = choice.name == job.optimizer.name
    return choice.params if same and isinstance(choice.params, OptimizerParams) else None


def _checkpoint_at(parent: RunInfo, step: int) -> Checkpoint:
    points = {point.step: point for point in list_checkpoints(parent.folder)}
    if step not in points:
        there = ", ".join(str(number) for number in sorted(points)) or "none"
        raise InputError(f"The run {parent.name} has no checkpoint at step {step}; there are: {there}.")
    return points[step]


def _child_job(
    parent: RunInfo,
    checkpoint: Checkpoint,
    base: Base,
    dataset: Dataset,
    extra_steps: int,
    optimizer: Choice | None,
    *,
    run_name: str,
    mode: str,
) -> Job:
    config = parent.manifest["config"]
    steps = checkpoint.step + extra_steps
    parent_steps = int(config["train"]["steps"])
    params = TrainParams.from_json(
        {
            **_in_steps(config["train"], "text_encoder_stop", parent_steps),
            "steps": steps,
            "run_name": run_name or f"{parent.name}-to{steps}",
            "mode": mode,
        }
    )
    return Job(
        base=base,
        dataset=dataset,
        params=params,
        network=choice_from_json(config["network"], networks()),
        optimizer=optimizer or choice_from_json(config["optimizer"], optimizers()),
        objective=choice_from_json(config["objective"], objectives()),
        captions=CaptionParams.from_json(_in_steps(config.get("captions", {}), "token_warmup", parent_steps)),
        blocks=str(config["blocks"]),
        augment=AugmentParams.from_json(config.get("augment", {})),
        parent=f"{parent.key}:{checkpoint.step}",
        start=_start_of_child(parent, checkpoint) if "start" in config else None,
    )


def _in_steps(settings: Mapping[str, Any], name: str, total_steps: int) -> dict[str, Any]:
    """Settings in which a share of the parent's steps is said in steps, so that it means the same in the child."""
    value = float(settings.get(name, 0.0))
    return {**settings, name: float(steps_of(value, total_steps))} if value > 0.0 else dict(settings)


def _start_of_child(parent: RunInfo, checkpoint: Checkpoint) -> StartLora:
    """The parent's own LoRA, for a run whose modules and ranks came from a file.

    Raises:
        InputError: the checkpoint has no LoRA.
    """
    if checkpoint.lora_path is None:
        raise InputError(
            f"The run {parent.name} began with a LoRA file, and its checkpoint at step {checkpoint.step} has no LoRA "
            "to tell the ranks; continue from another step."
        )
    path = checkpoint.lora_path
    return StartLora(path=path, name=f"{parent.name} at step {checkpoint.step}", sha256=sha256_file(path))


def runs_of(output_dir: Path) -> list[Path]:
    """Returns the folders of all runs, sorted by name."""
    return sorted(path.parent for path in runs_folder(output_dir).glob("*/manifest.json"))
