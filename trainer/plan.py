"""The plan of a run: everything is checked, and what will happen is said, before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.errors import InputError
from ..dataset.table import Dataset
from ..families._spec import Family, Target, get_family
from ..networks._attach import AdapterSet, ModuleSettings
from ..networks._blocks import TEXT_ENCODER
from ..networks._spec import Network, get_network
from ..networks._targeting import Targeting, parse_targeting
from .config import Job
from .loss_checks import check_encoders, check_loss, loss_lines, weight_notes
from .names import differences, normal_blocks
from .objectives._spec import Objective, find_objective
from .optimizers._adaptive_params import AdaptiveParams
from .optimizers._check import check_optimizer
from .optimizers._spec import Optimizer, OptimizerParams, Trained, find_optimizer
from .schedules._spec import Schedule, find_schedule
from .stage_text import seen_images, stages_lines
from .staged import Stage, check_stages, stage_at, stage_warnings
from .starting import check_start

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
HEADER_BYTES_PER_TENSOR = 160


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A job whose settings fit together, with everything its names stand for.

    Attributes:
        targeting: which modules are trained, and with which settings.
        blocks: the chosen blocks, "TE" among them when the text encoder is trained.
        train_unet: whether any block of the UNet is trained.
        train_text_encoder: whether the text encoder is trained.
        stages: what comes one after the other; at least one.
        warnings: what a person should know before the run.
    """

    job: Job
    family: Family
    network: Network
    optimizer: Optimizer
    optimizer_params: OptimizerParams
    schedule: Schedule
    objective: Objective
    targeting: Targeting
    blocks: tuple[str, ...]
    train_unet: bool
    train_text_encoder: bool
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...]

    def chosen(self, targets: Sequence[Target]) -> list[tuple[Target, ModuleSettings]]:
        """Returns the modules that are trained, with the settings they have of their own.

        Raises:
            InputError: no module is left.
        """
        return self.targeting.choose(targets, self.network, self.job.network.params)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The data sets that are trained on, each once."""
        return tuple({id(stage.job.dataset): stage.job.dataset for stage in self.stages}.values())

    def share(self, step: int, group: str) -> float:
        """Returns the part of a group's base learning rate that is used in a step (from 0)."""
        part, stop = group.partition(" ")[0], self.job.text_encoder_stop_step()
        if stop is not None and step >= stop and part == "text_encoder":
            return 0.0
        return stage_at(self.stages, step).share(step, part, self.schedule.factor)


def check_job(job: Job) -> Checked:
    """Checks all settings against each other, the base and the data set, without loading the model.

    Raises:
        InputError: something does not fit; the message names it.
    """
    family = get_family(job.base.family)
    optimizer_params = job.optimizer.params
    if not isinstance(optimizer_params, OptimizerParams):
        raise InputError(
            f"The optimizer {job.optimizer.name!r} was given the settings of something else; wire an optimizer."
        )
    if job.params.trained_dtype == "fp16" and isinstance(optimizer_params, AdaptiveParams):
        raise InputError(
            f"trained_dtype is fp16, but the optimizer {job.optimizer.name} begins with steps of "
            f"{optimizer_params.d0:g}, which fp16 cannot hold: keep trained_dtype fp32 (precision fp16 stays as fast)."
        )
    optimizer, objective = find_optimizer(job.optimizer.name), find_objective(job.objective.name)
    prediction_type = job.base.prediction_type
    if objective.prediction_type != prediction_type:
        raise InputError(
            f"The objective {objective.name} is for models that predict {objective.prediction_type}, but "
            f"{job.base.name} ({family.title}) predicts {prediction_type}; choose the objective for that."
        )
    network = get_network(job.network.name)
    if not isinstance(job.network.params, network.params):
        raise InputError(f"The network {network.name!r} was given the settings of something else; wire a network.")
    targeting = parse_targeting(job.blocks, family.blocks)
    blocks, train_unet, train_text_encoder = _trained_parts(job, network, targeting)
    if job.start is not None:
        check_start(job.start, network)
    trained = Trained(unet=train_unet, text_encoder=train_text_encoder, steps=job.params.steps)
    warnings = [
        *check_optimizer(optimizer, optimizer_params, trained),
        *_precision_warnings(job),
        *_stage_warnings(job),
    ]
    if optimizer.averages and job.params.ema_decay > 0.0:
        raise InputError(
            f"ema_decay is {job.params.ema_decay:g}, but the optimizer {optimizer.name} averages the weights itself: "
            "set ema_decay to 0."
        )
    check_encoders(job, family)
    stages = check_stages(job, optimizer=optimizer, optimizer_params=optimizer_params, trained=trained)
    checked = Checked(
        job=job,
        family=family,
        network=network,
        optimizer=optimizer,
        optimizer_params=optimizer_params,
        schedule=find_schedule(optimizer_params.schedule),
        objective=objective,
        targeting=targeting,
        blocks=blocks,
        train_unet=train_unet,
        train_text_encoder=train_text_encoder,
        stages=stages,
        warnings=tuple(warnings),
    )
    warnings += stage_warnings(stages, train_text_encoder=train_text_encoder)
    captions = [warning for dataset in checked.datasets for warning in _caption_warnings(dataset)]
    check_loss(job, checked.datasets, train_unet=train_unet, train_text_encoder=train_text_encoder)
    weights = [note for dataset in checked.datasets for note in weight_notes(job, dataset)]
    return replace(checked, warnings=(*warnings, *captions, *weights))


def _stage_warnings(job: Job) -> list[str]:
    """A data set that is wired and never trained on is an oversight."""
    if not job.stages or any(stage.dataset is None or stage.dataset is job.dataset for stage in job.stages):
        return []
    return ["Every stage has a data set of its own, so that of the run itself is not trained on."]


def _precision_warnings(job: Job) -> list[str]:
    params = job.params
    if params.trained_dtype == "fp32" or params.stochastic_rounding:
        return []
    cure = "switch stochastic_rounding on, or keep" if params.trained_dtype == "bf16" else "keep"
    return [
        f"What is trained is kept in {params.trained_dtype}: updates too small for its digits are lost, and usually "
        f"nothing is learned; {cure} trained_dtype fp32 (precision {params.precision} stays as fast)."
    ]


def _caption_warnings(dataset: Dataset) -> list[str]:
    """A data set whose captions were not found trains without a word, and nothing calls what it learned."""
    prefixed = np.array([bool(subset.caption_prefix.strip()) for subset in dataset.subsets])
    silent = (dataset.tags.lengths == 0) & ~prefixed[dataset.subset_index] & ~dataset.is_reg
    count, of = int(silent.sum()), int((~dataset.is_reg).sum())
    if count == 0:
        return []
    return [
        f"{count} of {of} pictures have no caption: what they show sticks to every prompt. Put cat.txt beside cat.png, "
        "tag them, or give the data set a class_text or caption_prefix."
    ]


def _trained_parts(job: Job, network: Network, targeting: Targeting) -> tuple[tuple[str, ...], bool, bool]:
    has_unet, has_text = targeting.parts(network, job.network.params)
    trained = {True: job.params.train_text_encoder and has_text, False: job.params.train_unet and has_unet}
    blocks = tuple(block for block in targeting.blocks if trained[block == TEXT_ENCODER])
    if not blocks:
        raise InputError(
            f"The blocks {job.blocks!r} lie in a part that is not trained: switch train_unet or train_text_encoder on, "
            "or choose other blocks."
        )
    return blocks, any(block != TEXT_ENCODER for block in blocks), TEXT_ENCODER in blocks


def saves_at(
    step: int,
    *,
    every_steps: int,
    every_epochs: int,
    batches_per_epoch: int,
    batches_before: int,
    batches_done: int,
) -> bool:
    """Returns whether a checkpoint is kept after ``step`` steps (counted from 1).

    An epoch ends with the step in which its last batch was used.

    Args:
        step: steps done.
        every_steps: 0 is off.
        every_epochs: 0 is off.
        batches_per_epoch: of the data set.
        batches_before: before the last step.
        batches_done: after it.
    """
    if every_steps > 0 and step % every_steps == 0:
        return True
    if every_epochs <= 0:
        return False
    per_save = every_epochs * batches_per_epoch
    return batches_done // per_save > batches_before // per_save


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        checked: the job.
        run_name: name of the run.
        num_modules: adapted modules by part.
        num_parameters: trained numbers by part.
        num_kept: checkpoints that will lie on disk at the end, the last one included.
        file_numbers: numbers in a LoRA file.
        file_tensors: tensors in a LoRA file.
        sizes: the ranks of the modules in words, "" for networks without one.
    """

    checked: Checked
    run_name: str
    num_modules: dict[str, int]
    num_parameters: dict[str, int]
    num_kept: int
    file_numbers: int
    file_tensors: int
    sizes: str

    @property
    def epochs(self) -> float:
        """How often the data sets are gone through."""
        return sum(stage.epochs for stage in self.checked.stages)

    @property
    def num_train_images(self) -> int:
        """Pictures of an epoch after repeats, regularisation left out; of all data sets."""
        return sum(seen_images(dataset, is_reg=False) for dataset in self.checked.datasets)

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures of an epoch; of all data sets."""
        return sum(seen_images(dataset, is_reg=True) for dataset in self.checked.datasets)

    @property
    def file_bytes(self) -> int:
        """Size of one LoRA file."""
        return (
            self.file_numbers * DTYPE_BYTES[self.checked.job.params.save_dtype]
            + self.file_tensors * HEADER_BYTES_PER_TENSOR
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint on disk: LoRA (fp32 at worst) and state."""
        average = 1 if self.checked.job.params.ema_decay > 0.0 else 0
        return self._tensor_bytes(4 * (2 + average + self.checked.optimizer.state_floats))

    @property
    def run_bytes(self) -> int:
        """Disk space the run needs at most: all kept checkpoints, one to go on from, one being written."""
        return self.checkpoint_bytes * (self.num_kept + 2) + self.checked.job.params.steps * 120

    def _tensor_bytes(self, bytes_per_number: int) -> int:
        numbers = max(self.file_numbers, sum(self.num_parameters.values()))
        return numbers * bytes_per_number + self.file_tensors * HEADER_BYTES_PER_TENSOR

    def text(self) -> str:
        """Returns the plan in a few lines."""
        job, checked = self.checked.job, self.checked
        params = job.params
        return "\n".join(
            [
                f"Plan of {self.run_name}: {params.steps} steps on {self._base_text()}.",
                *stages_lines(
                    checked.stages,
                    checked.optimizer_params,
                    train_unet=checked.train_unet,
                    train_text_encoder=checked.train_text_encoder,
                ),
                f"Trained: {self._parts_text()}; blocks {normal_blocks(job.blocks) or 'ALL'}.",
                f"Optimizer: {job.optimizer.name}, {self._rates_text()}, schedule {checked.schedule.name}, "
                f"warm-up {checked.optimizer_params.warmup_steps} steps; objective {checked.objective.name}.",
                f"Numbers: {params.precision}, clip skip {self._clip_skip_text()}, seed {params.seed}; LoRA file "
                f"{self.file_bytes / 2**20:.2f} MiB in {params.save_dtype}, {self.num_kept} kept, the run takes at "
                f"most {self.run_bytes / 2**20:.1f} MiB on disk.",
                *loss_lines(job, checked.datasets),
                *(f"Note: {warning}" for warning in checked.warnings),
            ]
        )

    def _clip_skip_text(self) -> str:
        params = self.checked.job.params
        return f"{params.clip_skip} and {params.clip_skip_2}" if params.clip_skip_2 else f"{params.clip_skip}"

    def _base_text(self) -> str:
        base, extras = self.checked.job.base, [self.checked.family.title]
        if base.prediction_type != "epsilon":
            extras.append(f"predicts {base.prediction_type}{', zero terminal SNR' * base.zero_terminal_snr}")
        if base.vae_path is not None:
            extras.append(f"VAE {base.vae_name or base.vae_path.name}")
        extras.extend(f"{lora.name} merged in at {lora.strength_model:g}" for lora in base.loras)
        return f"{base.name} ({'; '.join(extras)})"

    def _parts_text(self) -> str:
        words = []
        for part, title in (("unet", "UNet"), ("text_encoder", "text encoder")):
            if self.num_modules.get(part):
                words.append(f"{title} {self.num_modules[part]} modules, {self.num_parameters[part]:,} parameters")
            else:
                words.append(f"{title} not")
        network = self.checked.job.network
        given = {name: value for name, value in network.params.to_json().items() if name in ("rank", "alpha")}
        settings = ", ".join(f"{name} {value}" for name, value in {**given, **differences(network.params)}.items())
        start = self.checked.job.start
        begun = f"; begins as {start.name}" if start is not None else ""
        sizes = f"; ranks {self.sizes}" if self.sizes else ""
        return f"{'; '.join(words)} ({network.name}{': ' if settings else ''}{settings}{sizes}{begun})"

    def _rates_text(self) -> str:
        params, words = self.checked.optimizer_params, []
        if self.checked.train_unet:
            words.append(f"learning rate {params.lr_unet:g} (UNet)")
        if self.checked.train_text_encoder:
            words.append(f"{params.lr_text_encoder:g} (text encoder)")
        return ", ".join(words)


def make_plan(checked: Checked, adapter: AdapterSet, targets: Sequence[Target]) -> Plan:
    """Returns the plan of a checked job, from the adapter on the loaded model's chosen targets."""
    tensors = adapter.file_tensors()
    modules: dict[str, int] = {}
    for target in targets:
        modules[target.part] = modules.get(target.part, 0) + 1
    parameters = {
        part: sum(parameter.numel() for parameter in parameters)
        for part, parameters in adapter.parameters_by_part().items()
    }
    return Plan(
        checked=checked,
        run_name=checked.job.run_name(),
        num_modules=modules,
        num_parameters=parameters,
        num_kept=_num_kept(checked),
        file_numbers=sum(tensor.numel() for tensor in tensors.values()),
        file_tensors=len(tensors),
        sizes=_sizes_text(adapter),
    )


def _sizes_text(adapter: AdapterSet) -> str:
    """The ranks by number of modules, such as "8 (192 modules), 4 (66)"; "" where all are the network's own."""
    counts: dict[int, int] = {}
    for stem in adapter.stems:
        rank = adapter.size_of(stem).rank
        counts[rank] = counts.get(rank, 0) + 1
    if adapter.network.rank(adapter.choice.params) is None or set(counts) == {
        adapter.network.rank(adapter.choice.params)
    }:
        return ""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{rank} ({count} modules)" for rank, count in ordered[:4])


def _num_kept(checked: Checked) -> int:
    params = checked.job.params
    saves = params.steps // params.save_every_steps if params.save_every_steps else 0
    if params.save_every_epochs:
        for stage in checked.stages:
            per_save = params.save_every_epochs * stage.batches_per_epoch
            saves += int(stage.steps * stage.batches_per_update) // per_save
    saves += len(checked.stages) - 1
    return 1 + (min(saves, params.keep_last) if params.keep_last else saves)
