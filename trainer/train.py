"""Training a LoRA from a job: find or make the run, load, cache, train, export; and going on with a finished run."""

import contextlib
import gc
import importlib.metadata
import json
import platform
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InputError, TrainingError
from ..core.files import ensure_space
from ..core.params import Choice, choice_from_json
from ..core.progress import Progress, SilentProgress
from ..dataset.captions import captions_vary
from ..dataset.table import Dataset, options_of
from ..families._base import Base, base_hash
from ..families._spec import Components
from ..networks._attach import AdapterSet
from ..networks._spec import networks
from .caches import ContentIndex, LatentCache
from .checkpoints import Checkpoint, State, latest_readable, list_checkpoints, load_state
from .config import NUMERICS_VERSION, Job, TrainParams, hash_of, origins
from .feed import Feed, KeptTexts, LiveTexts, Texts
from .loop import Learner, Route, train
from .metadata import fixed_metadata
from .objectives._spec import objectives
from .optimizers._spec import ParamGroup, optimizers
from .plan import Checked, Plan, check_job, make_plan, saves_at
from .precision import Precision
from .recorder import RunRecorder, facts_of
from .run import RunFolder, RunInfo, RunRef, check_writable, find_runs, new_run, open_run, publish_file, runs_folder

VERSIONS_OF = ("torch", "diffusers", "transformers", "safetensors", "numpy", "Pillow")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things lie.

    Attributes:
        output_dir: runs go to ``atelier/runs`` below it.
        loras_dir: LoRAs are published to ``atelier/<run name>`` below it.
        cache_dir: latents and content hashes.
    """

    output_dir: Path
    loras_dir: Path
    cache_dir: Path


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


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a continued run begins: the state of its parent."""

    step: int
    state: State
    images_seen: int


def train_lora(
    job: Job,
    *,
    output_dir: Path,
    loras_dir: Path,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> RunResult:
    """Trains a LoRA, or returns the finished run of the very same job.

    May be called inside ``torch.inference_mode()``. Everything is checked before the first step. When ``progress``
    cancels, the state is saved and its exception raised unchanged; the same call then goes on where it stopped.

    Args:
        job: what to train.
        output_dir: runs go to ``atelier/runs`` below it.
        loras_dir: LoRAs are published to ``atelier/<run name>`` below it.
        cache_dir: latents and content hashes.
        device: where to train.
        progress: shows, and cancels.
        prompt: the graph the job comes from, kept in the manifest.

    Raises:
        InputError: settings that do not fit; found before any work.
        StorageError: a folder cannot be written, or the disk is full.
        TrainingError: a value is not finite, nothing was learned, or the memory is not enough.
    """
    places = Places(output_dir=Path(output_dir), loras_dir=Path(loras_dir), cache_dir=Path(cache_dir))
    device = torch.device(device)
    with _own_torch_state(device):
        return _train_lora(job, places, device, progress or SilentProgress(), prompt, start=None)


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

    Raises:
        InputError: the parent has no such checkpoint, or the base is another one.
        StorageError: see ``train_lora``.
        TrainingError: see there.
    """
    if extra_steps < 1:
        raise InputError(f"extra_steps is {extra_steps}: give at least 1 step to go on.")
    parent = open_run(Path(run.folder))
    checkpoint = _checkpoint_at(parent, run.step)
    job = _child_job(parent, checkpoint, base, dataset, extra_steps, optimizer, run_name=run_name, mode=mode)
    places = Places(output_dir=Path(output_dir), loras_dir=Path(loras_dir), cache_dir=Path(cache_dir))
    device = torch.device(device)
    with _own_torch_state(device):
        progress = progress or SilentProgress()
        if base_hash(base, progress) != parent.manifest["base"]["sha256"]:
            raise InputError(
                f"The run {parent.name} was trained on {parent.manifest['base']['name']}, and {base.name} is another "
                "model: open the same base to continue."
            )
        start = Start(step=checkpoint.step, state=load_state(checkpoint), images_seen=facts_of(checkpoint)[1])
        return _train_lora(job, places, device, progress, prompt, start=start)


@contextlib.contextmanager
def _own_torch_state(device: torch.device) -> Iterator[None]:
    """Leaves inference mode, keeps the caller's random state, and gives all memory back at the end."""
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            yield
    except torch.OutOfMemoryError as cause:
        raise TrainingError(
            "The device's memory is not enough: lower batch_size or resolution_px, switch gradient_checkpointing on, or "
            "use the precision bf16."
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
    *,
    start: Start | None,
) -> RunResult:
    checked = check_job(job)
    check_writable(places.output_dir, "output")
    check_writable(places.loras_dir, "loras")
    check_writable(places.cache_dir, "cache")
    progress.status("reading the base model and the pictures")
    base_sha256 = base_hash(job.base, progress)
    contents = ContentIndex(places.cache_dir).hashes(job.dataset, progress)
    data_hash = _data_hash(job.dataset, contents)
    key = job.key(base_hash=base_sha256, data_hash=data_hash)
    folder, finished = _find(job, places, key)
    if finished is not None:
        return _finished_result(job, finished, places)
    if folder is None:
        manifest = _manifest(checked, base_sha256=base_sha256, data_hash=data_hash, prompt=prompt)
        folder = new_run(places.output_dir, name=job.run_name(), key=key, manifest=manifest)
    with RunFolder.held(folder) as run:
        # The name of an interrupted run stays as it was begun.
        checked = replace(checked, job=job.with_params(run_name=str(run.manifest["run_name"])))
        return _train_held(checked, run, places, device, progress, base_sha256=base_sha256, contents=contents, start=start)


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


@dataclass
class _Loaded:
    """The loaded parts; what is no longer needed is let go of."""

    components: Components
    adapter: AdapterSet | None = None

    def free(self) -> None:
        if self.adapter is not None:
            self.adapter.detach_from_model()
        self.adapter = None
        self.components = Components()


def _train_held(
    checked: Checked,
    run: RunFolder,
    places: Places,
    device: torch.device,
    progress: Progress,
    *,
    base_sha256: str,
    contents: list[str],
    start: Start | None,
) -> RunResult:
    job, family = checked.job, checked.family
    total_steps = job.params.steps
    precision = Precision(job.params.precision, device)
    loaded = _Loaded(Components())
    recorder: RunRecorder | None = None
    step = 0
    try:
        # the model, on the CPU until it is needed
        progress.status(f"loading {job.base.name}")
        loaded.components = family.load(
            job.base.path, parts=("unet", "text_encoder"), dtype=precision.weights_dtype, progress=progress
        )
        targets = checked.chosen(
            family.targets(loaded.components, unet=checked.train_unet, text_encoder=checked.train_text_encoder)
        )
        loaded.adapter = AdapterSet.attach(targets, job.network, seed=job.params.seed)

        # the plan, and room for it
        plan = make_plan(checked, loaded.adapter, targets)
        progress.status(plan.text())
        _check_space(plan, run, places)

        # latents
        latents = LatentCache(
            places.cache_dir / "latents",
            job.dataset,
            buckets=checked.buckets,
            contents=contents,
            vae_identity=f"{family.name} {base_sha256}",
            flips=[job.dataset.subset_of(number).flip for number in range(len(job.dataset))],
        )
        latents.fill(
            family,
            lambda: family.load(job.base.path, parts=("vae",), dtype=torch.float32, device=device).vae,
            progress,
        )

        # what is trained, on the device
        _move(loaded, device)
        _prepare(loaded.components, gradient_checkpointing=job.params.gradient_checkpointing)
        optimizer = _build_optimizer(checked, loaded.adapter)
        recorder = RunRecorder(
            run=run,
            plan=plan,
            adapter=loaded.adapter,
            optimizer=optimizer,
            precision=precision,
            metadata=fixed_metadata(
                plan, base_hash=base_sha256, started_at=time.time(), session_id=random.SystemRandom().getrandbits(32)
            ),
            accepted_stems=family.accepted_stems(loaded.components),
            loras_dir=places.loras_dir,
            progress=progress,
        )
        step, seconds, images_seen = _take_up(run, recorder, start)
        first_step = step

        # the loop
        texts = _texts(checked, loaded, device, progress)
        learner = Learner(
            predict=lambda noisy, timesteps, text: family.predict(loaded.components.unet, noisy, timesteps, text),
            batches=Feed(
                dataset=job.dataset,
                buckets=checked.buckets,
                batch_size=job.params.batch_size,
                seed=job.params.seed,
                latents=latents,
                texts=texts,
                latent_scale=family.latent_scale,
                prior_loss_weight=job.params.prior_loss_weight,
                device=device,
            ),
            objective=checked.objective,
            objective_params=job.objective.params,
            alphas_cumprod=family.alphas_cumprod().to(torch.float32).to(device),
            optimizer=optimizer,
            factor=checked.schedule.factor,
            precision=precision,
            device=device,
        )
        run.write_status("running", step=step, total_steps=total_steps, seconds=seconds)
        step = train(learner, _route(checked, first_step=step, seconds=seconds, images_seen=images_seen), recorder, progress)
        return _finish(run, recorder, plan, steps_done=step - first_step)
    except BaseException as failure:
        if recorder is None or not recorder.cancelled:
            _note_failure(run, failure, total_steps=total_steps)
        raise
    finally:
        loaded.free()


def _route(checked: Checked, *, first_step: int, seconds: float, images_seen: int) -> Route:
    params, rates = checked.job.params, checked.optimizer_params
    return Route(
        first_step=first_step,
        total_steps=params.steps,
        seed=params.seed,
        accumulation_steps=params.gradient_accumulation_steps,
        max_grad_norm=params.max_grad_norm,
        warmup_steps=rates.warmup_steps,
        cycles=rates.cycles,
        saves_at=lambda step: saves_at(
            step,
            every_steps=params.save_every_steps,
            every_epochs=params.save_every_epochs,
            batches_per_epoch=checked.batches_per_epoch,
            accumulation_steps=params.gradient_accumulation_steps,
        ),
        images_seen=images_seen,
        seconds=seconds,
    )


def _take_up(run: RunFolder, recorder: RunRecorder, start: Start | None) -> tuple[int, float, int]:
    """Loads the last state of the run, or its parent's; returns (step, seconds, pictures seen)."""
    found = latest_readable(run.folder, recorder.progress.status)
    step, seconds, images_seen, state = 0, 0.0, 0, None
    if found is not None:
        step, state = found[0].step, found[1]
        seconds, images_seen = facts_of(found[0])
    elif start is not None:
        step, state, images_seen = start.step, start.state, start.images_seen
    run.cut_metrics(step)
    recorder.losses.extend(row["loss"] for row in open_run(run.folder).rows)
    if state is not None:
        recorder.adapter.load_state(state.adapter)
        groups = [(group["name"], group["lr"]) for group in recorder.optimizer.param_groups]
        recorder.optimizer.load_state_dict(dict(state.optimizer))
        for group, (name, rate) in zip(recorder.optimizer.param_groups, groups, strict=True):
            group["name"], group["lr"] = name, rate
        recorder.precision.load_state(state.precision)
        recorder.publish_missing()
        recorder.progress.status(f"going on after step {step}")
    return step, seconds, images_seen


def _texts(checked: Checked, loaded: _Loaded, device: torch.device, progress: Progress) -> Texts:
    """Live encoding when the text encoder is trained; else kept states, and the encoder freed if all fit."""
    clip_skip = checked.job.params.clip_skip
    if checked.train_text_encoder:
        return LiveTexts(checked.family, loaded.components, clip_skip=clip_skip)
    encoder = Components(
        text_encoders=loaded.components.text_encoders, tokenizers=loaded.components.tokenizers
    )
    texts = KeptTexts(checked.family, encoder, clip_skip=clip_skip, device=device)
    dataset = checked.job.dataset
    if not captions_vary(dataset):
        captions = [_plain_caption(dataset, number) for number in range(len(dataset))]
        if texts.fill(captions, progress):
            texts.free()
            loaded.components.text_encoders = ()
    return texts


def _plain_caption(dataset: Dataset, number: int) -> str:
    from ..dataset.captions import caption_for

    return caption_for(dataset, number, 0)


def _move(loaded: _Loaded, device: torch.device) -> None:
    components = loaded.components
    components.unet.to(device)
    for text_encoder in components.text_encoders:
        text_encoder.to(device)
    if loaded.adapter is not None:
        with torch.no_grad():
            for parameters in loaded.adapter.parameters_by_part().values():
                for parameter in parameters:
                    parameter.data = parameter.data.to(device)


def _prepare(components: Components, *, gradient_checkpointing: bool) -> None:
    """Freezes the model; with checkpointing, also tells it to compute the forward pass twice."""
    for module in (components.unet, *components.text_encoders):
        module.requires_grad_(False)
        if gradient_checkpointing:
            # transformers and diffusers only do it in training mode; SD1.x has no dropout that this would switch on
            module.train()
            enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
            enable()


def _build_optimizer(checked: Checked, adapter: AdapterSet) -> torch.optim.Optimizer:
    rates = {"unet": checked.optimizer_params.lr_unet, "text_encoder": checked.optimizer_params.lr_text_encoder}
    groups = [
        ParamGroup(name=part, lr=rates[part], parameters=parameters)
        for part, parameters in adapter.parameters_by_part().items()
        if parameters
    ]
    return checked.optimizer.build(groups, checked.optimizer_params)


def _check_space(plan: Plan, run: RunFolder, places: Places) -> None:
    ensure_space(run.folder, plan.run_bytes)
    ensure_space(places.loras_dir, plan.file_bytes * plan.num_kept)


def _finish(run: RunFolder, recorder: RunRecorder, plan: Plan, *, steps_done: int) -> RunResult:
    info = open_run(run.folder)
    checkpoint = next(point for point in reversed(list_checkpoints(run.folder)) if point.step >= recorder.total_steps)
    path = run.publish(checkpoint, recorder.loras_dir, file_name=recorder.file_name(checkpoint.step))
    if path is None:
        raise TrainingError(
            "The run ended with a learning rate that was 0 in every step, so there is no LoRA; use a shorter warm-up."
        )
    seconds = facts_of(checkpoint)[0]
    outcome = recorder.report.text() if recorder.report is not None else ""
    tail = recorder.losses[-min(50, len(recorder.losses)) :]
    report = "\n".join(
        [
            plan.text(),
            f"Trained {recorder.total_steps} steps in {seconds:.1f} s ({steps_done} of them now); mean loss of the last "
            f"{len(tail)} steps {sum(tail) / max(1, len(tail)):.4f}.",
            outcome,
            f"Saved as {path.relative_to(recorder.loras_dir).as_posix()} in the loras folder.",
        ]
    )
    run.write_status(
        "finished", step=checkpoint.step, total_steps=recorder.total_steps, seconds=seconds, report=report
    )
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
    last = max((point.step for point in list_checkpoints(run.folder)), default=0)
    state = "failed" if isinstance(failure, ValueError) else "interrupted"
    with contextlib.suppress(OSError, ValueError):
        run.write_status(
            state, step=last, total_steps=total_steps, seconds=0.0, reason=f"{type(failure).__name__}: {failure}"
        )


def _data_hash(dataset: Dataset, contents: list[str]) -> str:
    """Returns a hash of everything of the data set that decides the numbers; not of where it lies."""
    parts = [repr(options_of(subset)) for subset in dataset.subsets]
    for number, content in enumerate(contents):
        subset = int(dataset.subset_index[number])
        parts.extend((content, str(subset), dataset.caption(number)))
    return hash_of(parts)


def _manifest(
    checked: Checked, *, base_sha256: str, data_hash: str, prompt: Mapping[str, Any] | None
) -> dict[str, Any]:
    job, dataset = checked.job, checked.job.dataset
    counts = [int((dataset.subset_index == number).sum()) for number in range(len(dataset.subsets))]
    return {
        "total_steps": job.params.steps,
        "config": job.config(),
        "origins": {
            "train": origins(job.params),
            "network": origins(job.network.params),
            "optimizer": origins(job.optimizer.params),
            "objective": origins(job.objective.params),
        },
        "base": {"name": job.base.name, "family": job.base.family, "sha256": base_sha256},
        "data": {
            "name": dataset.root.name,
            "hash": data_hash,
            "num_images": len(dataset),
            "subsets": [
                {
                    "folder": subset.folder.name,
                    "concept": subset.concept,
                    "repeats": subset.repeats,
                    "is_reg": subset.is_reg,
                    "num_images": count,
                }
                for subset, count in zip(dataset.subsets, counts, strict=True)
            ],
            "history": list(dataset.history),
        },
        "versions": {"numerics": NUMERICS_VERSION, "python": platform.python_version(), **_library_versions()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "prompt": json.loads(json.dumps(prompt)) if prompt is not None else None,
    }


def _library_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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
    params = TrainParams.from_json(
        {**config["train"], "steps": steps, "run_name": run_name or f"{parent.name}-to{steps}", "mode": mode}
    )
    return Job(
        base=base,
        dataset=dataset,
        params=params,
        network=choice_from_json(config["network"], networks()),
        optimizer=optimizer or choice_from_json(config["optimizer"], optimizers()),
        objective=choice_from_json(config["objective"], objectives()),
        blocks=str(config["blocks"]),
        parent=f"{parent.key}:{checkpoint.step}",
    )


def runs_of(output_dir: Path) -> list[Path]:
    """Returns the folders of all runs, sorted by name."""
    return sorted(path.parent for path in runs_folder(output_dir).glob("*/manifest.json"))
