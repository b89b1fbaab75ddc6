"""One stretch of training in the folder of a run: load, plan, cache, train, finish."""

import contextlib
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from ..core.errors import TrainingError
from ..core.files import ensure_space
from ..core.index import Index
from ..core.progress import Progress
from ..families._base import text_hash, vae_hash
from ..families._checkpointing import recompute_activations
from ..families._spec import Components
from ..families._targets import every_target
from ..families._tokenizer import token_counts
from ..networks._attach import AdapterSet
from .average import MovingAverage
from .base_model import load_frozen
from .checkpoints import list_checkpoints
from .config import TrainParams
from .feeding import feed_of, forms_of, latent_cache, load_vae, texts_of
from .hooks import new_beginnings, one_after_the_other, text_encoder_stop
from .kohya_latents import KohyaLatents
from .loop import Learner, Route, Standing, train
from .loss_checks import length_notes
from .masks import LatentMasks
from .metadata import fixed_metadata
from .optimizers._spec import ParamGroup
from .plan import Checked, Plan, make_plan, saves_at
from .precision import TORCH_DTYPES, OutOfMemory, Precision
from .prior import PriorPreservation
from .recorder import RunRecorder, standing_of
from .resuming import Start, take_up
from .run import RunFolder, RunRef, open_run
from .staged import StagedFeed, StageProgress, joined, stage_at
from .starting import started
from .weights import AdapterWeights

log = logging.getLogger("lora_atelier")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things lie.

    Attributes:
        output_dir: runs go to ``atelier/runs`` below it.
        loras_dir: LoRAs are published to ``atelier/<run name>`` below it.
        cache_dir: latents.
        index: remembers content hashes; None keeps an index of its own in ``cache_dir``.
    """

    output_dir: Path
    loras_dir: Path
    cache_dir: Path
    index: Index | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a training gives back.

    Attributes:
        run: the run.
        lora_path: the published LoRA.
        steps_done: steps trained by this call; 0 when a finished run was found.
        seconds_training: of the whole run, stretches before an interruption included.
        report: plan and outcome, for a person.
        losses: of every step of the run.
    """

    run: RunRef
    lora_path: Path
    steps_done: int
    seconds_training: float
    report: str
    losses: tuple[float, ...]


@dataclass
class _Loaded:
    """The loaded parts; what is no longer needed is let go of."""

    components: Components
    adapter: AdapterSet | None = None

    def free(self) -> None:
        if self.adapter is not None:
            self.adapter.detach_from_model()
        self.adapter = None
        # Emptied in place: the frames of an exception on its way up may still hold the object.
        self.components.unet = self.components.vae = None
        self.components.text_encoders = ()


def train_held(
    checked: Checked,
    run: RunFolder,
    places: Places,
    device: torch.device,
    progress: Progress,
    *,
    base_sha256: str,
    contents: Sequence[Sequence[str]],
    masks: Sequence[LatentMasks | None],
    start: Start | None,
    given: Sequence[KohyaLatents],
) -> RunResult:
    """Trains the run that this process holds, from wherever it stands to its end.

    Args:
        checked: the job.
        run: its folder, locked.
        places: where things lie.
        device: where to train.
        progress: shows, and cancels.
        base_sha256: of the base model's file.
        contents: content hash of every picture of every stage.
        masks: of the pictures of every stage, read; None for a stage without any.
        start: the parent's state, for a run that continues another.
        given: latents of kohya's scripts that lie beside the pictures, of every stage.
    """
    job, family, stages = checked.job, checked.family, checked.stages
    total_steps = job.params.steps
    precision = Precision(job.params.precision, device)
    loaded = _Loaded(Components())
    recorder: RunRecorder | None = None
    feed: StagedFeed | None = None
    step = 0
    try:
        # the model, on the CPU until it is needed
        loaded.components = load_frozen(checked, dtype=precision.weights_dtype, device=device, progress=progress)
        chosen = checked.chosen(
            every_target(family, loaded.components, unet=checked.train_unet, text_encoder=checked.train_text_encoder)
        )
        if job.start is not None:
            chosen = started(job.start, family, loaded.components, chosen)
        targets = [target for target, _ in chosen]
        loaded.adapter = AdapterSet.attach(
            targets,
            job.network,
            seed=job.params.seed,
            dtype=TORCH_DTYPES[job.params.trained_dtype],
            settings={target.stem: settings for target, settings in chosen},
        )
        del chosen

        # the plan, and room for it
        count = partial(token_counts, loaded.components.tokenizers[0])
        notes = length_notes(job, checked.datasets, count)
        checked = replace(checked, warnings=(*checked.warnings, *notes))
        plan = make_plan(checked, loaded.adapter, targets)
        progress.status(plan.text())
        log.info("%s", plan.text())
        _check_space(plan, run, places)
        del targets  # they hold the model's modules

        # latents
        vae_identity = f"{family.name} {vae_hash(job.base, base_sha256, progress)}"
        caches = [
            latent_cache(stage, hashes, places.cache_dir, vae_identity, files, progress)
            for stage, hashes, files in zip(stages, contents, given, strict=True)
        ]
        vae = lru_cache(partial(load_vae, job, family, device))
        for cache in caches:
            cache.fill(family, vae, progress)
        vae.cache_clear()  # a damaged file of the cache would load it again

        # what is trained, on the device
        _move(loaded, device, half=precision.name != "fp32" and not job.params.fp8_base)
        _prepare(loaded.components, job.params)
        weights = AdapterWeights(stochastic_rounding=job.params.stochastic_rounding)
        optimizer = _build_optimizer(checked, loaded.adapter, weights)
        average = None
        if job.params.ema_decay > 0.0:
            average = MovingAverage(loaded.adapter, decay=job.params.ema_decay)
        hooks = [new_beginnings(stages, optimizer, weights), text_encoder_stop(job, loaded.adapter)]
        accepted_stems = family.accepted_stems(loaded.components)
        forms = [forms_of(checked, stage) for stage in stages]
        text_identity = f"{family.name} {text_hash(job.base, base_sha256, progress)} {job.params.precision}"
        texts = texts_of(checked, loaded.components, forms, text_identity, places.cache_dir, device, progress)
        for cache in caches:
            cache.hold_on(device)
        feed = joined(
            stages,
            [
                feed_of(stage, cache, texts, captions, family, device, masks=mask)
                for stage, cache, captions, mask in zip(stages, caches, forms, masks, strict=True)
            ],
            accumulation_steps=job.params.gradient_accumulation_steps,
            accumulation_images=job.params.accumulation_images,
        )
        recorder = RunRecorder(
            run=run,
            plan=plan,
            adapter=loaded.adapter,
            optimizer=optimizer,
            precision=precision,
            metadata=fixed_metadata(
                plan, base_hash=base_sha256, started_at=time.time(), session_id=random.SystemRandom().getrandbits(32)
            ),
            accepted_stems=accepted_stems,
            loras_dir=places.loras_dir,
            progress=progress,
            weights=weights,
            epochs_done=feed.epochs_done,
            average=average,
        )
        begun = take_up(run, recorder, start, accumulation_steps=job.params.gradient_accumulation_steps)
        step = begun.step

        # the loop
        def predict(noisy: torch.Tensor, timesteps: torch.Tensor, text: Any, conditioning: Any) -> torch.Tensor:
            return family.predict(loaded.components.unet, noisy, timesteps, text, conditioning=conditioning)

        preserve = None
        if job.params.prior_preservation:
            base_text = feed.text if checked.train_text_encoder else None
            preserve = PriorPreservation(
                adapter=loaded.adapter, predict=predict, rows=feed.regularisation, base_text=base_text
            )
        learner = Learner(
            predict=predict,
            batches=feed,
            objective=checked.objective,
            objective_params=job.objective.params,
            alphas_cumprod=_noise_schedule(checked).to(device),
            optimizer=optimizer,
            weights=weights,
            share=checked.share,
            precision=precision,
            device=device,
            average=average,
            before_step=one_after_the_other(hooks),
            after_update=loaded.adapter.limit_norms if loaded.adapter.limits_norms else None,
            preserve=preserve,
        )
        run.write_status("running", step=step, total_steps=total_steps, seconds=begun.seconds)
        shown = progress if len(stages) == 1 else StageProgress(progress, stages)
        step = train(learner, _route(checked, feed, begun), recorder, shown)
        return _finish(run, recorder, plan, steps_done=step - begun.step)
    except BaseException as failure:
        if recorder is None or not recorder.cancelled:
            _note_failure(run, failure, total_steps=total_steps)
        raise
    finally:
        if feed is not None:
            feed.free()
        loaded.free()


def _noise_schedule(checked: Checked) -> torch.Tensor:
    """Returns the schedule [T] fp32 that the objective wants for this base."""
    job = checked.job
    return checked.objective.schedule(
        checked.family.alphas_cumprod(),
        params=job.objective.params,
        terminal_snr_is_zero=job.base.zero_terminal_snr,
    ).to(torch.float32)


def _route(checked: Checked, feed: StagedFeed, begun: Standing) -> Route:
    params, stages = checked.job.params, checked.stages
    ends = {stage.end_step for stage in stages}

    def saves(step: int, batches_before: int, batches_done: int) -> bool:
        stage = stage_at(stages, step - 1)
        first = feed.starts[stage.number - 1]
        return step in ends or saves_at(
            step,
            every_steps=params.save_every_steps,
            every_epochs=params.save_every_epochs,
            batches_per_epoch=stage.batches_per_epoch,
            batches_before=batches_before - first,
            batches_done=batches_done - first,
        )

    return Route(
        first_step=begun.step,
        total_steps=params.steps,
        seed=params.seed,
        accumulation_steps=params.gradient_accumulation_steps,
        accumulation_images=params.accumulation_images,
        max_grad_norm=params.max_grad_norm,
        saves_at=saves,
        batches_done=begun.batches_done,
        images_seen=begun.images_seen,
        seconds=begun.seconds,
    )


def _move(loaded: _Loaded, device: torch.device, *, half: bool) -> None:
    """Brings model and adapter to the device.

    A GPU's convolutions in 16 bits want the channels last: else every one of them turns its pictures around and back.
    """
    components = loaded.components
    components.unet.to(device)
    if half and device.type == "cuda":
        components.unet.to(memory_format=torch.channels_last)
    for text_encoder in components.text_encoders:
        text_encoder.to(device)
    if loaded.adapter is not None:
        with torch.no_grad():
            for parameters in loaded.adapter.parameters_by_part().values():
                for parameter in parameters:
                    parameter.data = parameter.data.to(device)


def _prepare(components: Components, params: TrainParams) -> None:
    """Freezes the model; with checkpointing, also tells it what to compute twice."""
    for module in (components.unet, *components.text_encoders):
        module.requires_grad_(False)
        if params.gradient_checkpointing:
            recompute_activations(module, part=params.recomputed)


def _build_optimizer(checked: Checked, adapter: AdapterSet, weights: AdapterWeights) -> torch.optim.Optimizer:
    """Returns the optimizer over the adapter's groups; those with a factor of 0 are frozen and left out."""
    rates = {"unet": checked.optimizer_params.lr_unet, "text_encoder": checked.optimizer_params.lr_text_encoder}
    groups = [
        ParamGroup(
            name=group.name, lr=rates[group.part] * group.lr_factor, parameters=weights.worked_on(group.parameters)
        )
        for group in adapter.param_groups()
        if group.lr_factor > 0.0
    ]
    for group in adapter.param_groups():
        for parameter in group.parameters:
            parameter.requires_grad_(group.lr_factor > 0.0)
    return checked.optimizer.build(groups, checked.optimizer_params)


def _check_space(plan: Plan, run: RunFolder, places: Places) -> None:
    ensure_space(run.folder, plan.run_bytes)
    ensure_space(places.loras_dir, plan.file_bytes * plan.num_kept)


def _finish(run: RunFolder, recorder: RunRecorder, plan: Plan, *, steps_done: int) -> RunResult:
    info, accumulation_steps = open_run(run.folder), plan.checked.job.params.gradient_accumulation_steps
    checkpoint = list_checkpoints(run.folder)[-1]
    if checkpoint.lora_path is None:
        # The last state was there, but its LoRA was deleted by hand.
        recorder.save(standing_of(checkpoint, accumulation_steps=accumulation_steps), kept=True)
        checkpoint = list_checkpoints(run.folder)[-1]
    path = run.publish(checkpoint, recorder.loras_dir, file_name=recorder.file_name(checkpoint.step))
    if path is None:
        raise TrainingError(
            "The run ended with a learning rate that was 0 in every step, so there is no LoRA; use a shorter warm-up."
        )
    seconds = standing_of(checkpoint, accumulation_steps=accumulation_steps).seconds
    outcome = recorder.report.text() if recorder.report is not None else ""
    tail = recorder.losses[-min(50, len(recorder.losses)) :]
    report = "\n".join(
        [
            plan.text(),
            f"Trained {recorder.total_steps} steps in {seconds:.1f} s ({steps_done} of them now); mean loss of the "
            f"last {len(tail)} steps {sum(tail) / max(1, len(tail)):.4f}.",
            outcome,
            f"Saved as {path.relative_to(recorder.loras_dir).as_posix()} in the loras folder.",
        ]
    )
    run.write_status("finished", step=checkpoint.step, total_steps=recorder.total_steps, seconds=seconds, report=report)
    return RunResult(
        run=RunRef(folder=run.folder, key=info.key, step=checkpoint.step),
        lora_path=path,
        steps_done=steps_done,
        seconds_training=seconds,
        report=report,
        losses=tuple(recorder.losses),
    )


def _note_failure(run: RunFolder, failure: BaseException, *, total_steps: int) -> None:
    """Writes why the run stopped into its status; if the disk refuses even that, the failure itself still tells."""
    failed = isinstance(failure, (ValueError, OSError, OutOfMemory))
    reason = f"{type(failure).__name__}: {failure}"
    if not failed and failure.__cause__ is not None:  # what went wrong while a cancelled run was saved
        reason = f"{reason} ({failure.__cause__})"
    with contextlib.suppress(OSError, ValueError):
        points = list_checkpoints(run.folder)
        step, seconds = (points[-1].step, float(points[-1].facts.get("seconds", 0.0))) if points else (0, 0.0)
        run.write_status(
            "failed" if failed else "interrupted", step=step, total_steps=total_steps, seconds=seconds, reason=reason
        )
