"""Training: the job is put together from handles and options, and one call does the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from ..core.params import Choice
from ..dataset.normal import normal
from ..dataset.table import Dataset
from ..families._base import Base
from ..merger.lora.handle import Lora, open_lora
from ..networks._spec import get_network
from ..trainer.augment import AugmentParams
from ..trainer.caption_params import CaptionParams
from ..trainer.config import MODES, Job, TrainParams
from ..trainer.objectives._spec import find_objective
from ..trainer.optimizers._spec import find_optimizer
from ..trainer.run import RunRef
from ..trainer.stages import TrainStage
from ..trainer.starting import StartLora, choice_of_file
from ..trainer.train import RunResult, continue_run, train_lora
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, number, params_from, socket, split_widgets, text

log = logging.getLogger("lora_atelier")

SHOWN = (
    "run_name",
    "steps",
    "batch_size",
    "resolution_px",
    "seed",
    "train_unet",
    "train_text_encoder",
    "precision",
    "mode",
    "save_every_steps",
    "clip_skip",
    "gradient_checkpointing",
)
"""The twelve widgets that are not folded away."""

LATER = ("accumulation_images", "ema_decay", "trained_dtype", "stochastic_rounding", "fp8_base")
"""Settings that came after the first version: they stand behind all older inputs, so that saved workflows fit."""

NEWEST = ("clip_skip_2", "text_encoder_stop", "unmasked_weight", "normalize_masks", "prior_preservation")
"""Settings that came later still, likewise."""

LATEST = ("recomputed",)
"""Settings that came last, and stand behind the sockets before them; append here."""

DEFAULTS = {
    "network": ("lora", get_network),
    "optimizer": ("adamw", find_optimizer),
    "objective": ("epsilon", find_objective),
}
"""Which plug-in is used when its socket is left open, and how it is found."""

RUN_OUTPUTS = ("ATELIER_RUN", "ATELIER_LORA", "STRING")
RUN_OUTPUT_TOOLTIPS = (
    "The run: its folder and the step it reached, for checkpoint grids, plots, reports and for going on.",
    "The finished LoRA, which is also in the loras folder.",
    "What was trained and how: pictures, steps, losses, files.",
)


def default_choice(kind: str) -> Choice:
    """The option that is used when its socket is left open, with its own defaults."""
    name, find = DEFAULTS[kind]
    return Choice(kind=kind, name=name, params=find(name).params())


def unused_trigger(dataset: Dataset, trigger: str) -> str:
    """A note if a word of the trigger is in no caption, for then it calls nothing; else nothing."""
    wanted = [word.strip() for word in trigger.split(",") if word.strip()]
    if not wanted:
        return ""
    said = {normal(part) for part in (*dataset.tag_counts(), *(subset.caption_prefix for subset in dataset.subsets))}
    missing = [word for word in wanted if not any(normal(word) in part for part in said)]
    if not missing:
        return ""
    return f"Note: no caption holds the trigger {missing[0]!r}; 'Trigger and Fixed Tags' puts it into all of them."


def shown_result(result: RunResult, trigger: str, note: str = "") -> dict[str, Any]:
    """A node's return value for a run: text for the page, and the three outputs."""
    host = get_host()
    name = result.lora_path.relative_to(host.loras_dir()).as_posix()
    lora = open_lora(result.lora_path, name, trigger=trigger)
    report = f"{result.report}\n{note}" if note else result.report
    return {"ui": {"text": [report]}, "result": (result.run, lora, report)}


def start_of(base: Base, lora: Lora) -> StartLora:
    """The file to begin with.

    Raises:
        InputError: The LoRA is for another model family.
    """
    if lora.family != base.family:
        raise InputError(
            f"{lora.name} is a LoRA for {lora.family} and {base.name} is {base.family}: begin with a LoRA that was "
            "trained for this kind of base."
        )
    return StartLora(path=lora.path, name=lora.name, sha256=lora.sha256)


class TrainLora:
    """Trains a LoRA."""

    ID = "AtelierTrainLora"
    TITLE = "Train LoRA (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "Trains a LoRA on a data set. Everything is checked before the first step; Cancel keeps what was learned and "
        "the same settings go on from there. The same request twice returns the finished run at once."
    )
    SEARCH_ALIASES = ["train", "training", "fine-tune", "kohya", "lora trainer"]
    RETURN_TYPES = RUN_OUTPUTS
    RETURN_NAMES = ("run", "lora", "report")
    OUTPUT_TOOLTIPS = RUN_OUTPUT_TOOLTIPS
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        first, later = split_widgets(TrainParams, (*LATER, *NEWEST, *LATEST), shown=SHOWN)
        return {
            "required": {
                "base": socket("ATELIER_BASE", "The model to train on."),
                "dataset": socket("ATELIER_DATASET", "The pictures and captions to learn."),
                **first,
            },
            "optional": {
                "network": socket("ATELIER_NETWORK", "Kind and size of the adapter; LoRA of rank 16 when left open."),
                "optimizer": socket("ATELIER_OPTIMIZER", "Optimizer and learning rates; AdamW when left open."),
                "objective": socket("ATELIER_OBJECTIVE", "What is minimised; the error on the noise when left open."),
                "blocks": socket("ATELIER_BLOCKS", "Which modules are trained; all blocks when left open."),
                "trigger": text(
                    "The word that calls what is learned; noted in the LoRA's handle, captions stay as they are.",
                    advanced=True,
                ),
                "start_from": socket(
                    "ATELIER_LORA",
                    "A LoRA whose values the training begins with; its modules, ranks and alphas are taken over, its "
                    "strengths are not. With the network left open, its kind of network too.",
                ),
                **{name: later[name] for name in LATER},
                "stages": socket(
                    "ATELIER_STAGES",
                    "Stages with pictures, size and learning rates of their own, one after the other; the same from "
                    "the first step to the last when left open.",
                ),
                "augment": socket(
                    "ATELIER_AUGMENT",
                    "Variants of pictures and captions, further resolutions, small batches; none when left open.",
                ),
                **{name: later[name] for name in NEWEST},
                "captions": socket(
                    "ATELIER_CAPTIONS",
                    "How captions are read: their length, weights of words, how many tags at first; up to 75 tokens "
                    "as they stand when left open.",
                ),
                **{name: later[name] for name in LATEST},
            },
            "hidden": {"prompt": "PROMPT"},
        }

    def train(
        self,
        base: Base,
        dataset: Dataset,
        network: Choice | None = None,
        optimizer: Choice | None = None,
        objective: Choice | None = None,
        blocks: str | None = None,
        trigger: str = "",
        start_from: Lora | None = None,
        stages: tuple[TrainStage, ...] | None = None,
        augment: AugmentParams | None = None,
        captions: CaptionParams | None = None,
        prompt: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        """Put the job together and train."""
        if network is None and start_from is not None:
            network = choice_of_file(start_from.path)
        job = Job(
            base=base,
            dataset=dataset,
            params=params_from(TrainParams, values),
            network=network or default_choice("network"),
            optimizer=optimizer or default_choice("optimizer"),
            objective=objective or default_choice("objective"),
            blocks=blocks or "",
            start=None if start_from is None else start_of(base, start_from),
            stages=stages or (),
            augment=augment or AugmentParams(),
            captions=captions or CaptionParams(),
        )
        note = unused_trigger(dataset, trigger)
        if note:
            log.warning("%s", note)
        host = get_host()
        progress = host.progress(job.params.steps)
        result = train_lora(
            job,
            output_dir=host.output_dir(),
            loras_dir=host.loras_dir(),
            cache_dir=host.cache_dir(),
            device=host.device(),
            progress=progress,
            prompt=dict(prompt) if prompt else None,
            around=host.training,
            index=index_if_usable(progress),
        )
        log.info("%s", result.report)
        return shown_result(result, trigger, note)


class ContinueTraining:
    """Trains a finished run further."""

    ID = "AtelierContinueTraining"
    TITLE = "Continue Training (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "Trains a run for more steps, as a new run that starts from its weights and optimizer state; the first run "
        "stays as it is. (An interrupted run goes on by itself when its 'Train LoRA' is queued again.)"
    )
    SEARCH_ALIASES = ["resume training", "more steps", "continue"]
    RETURN_TYPES = RUN_OUTPUTS
    RETURN_NAMES = ("run", "lora", "report")
    OUTPUT_TOOLTIPS = RUN_OUTPUT_TOOLTIPS
    FUNCTION = "go_on"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "run": socket("ATELIER_RUN", "The run to go on from."),
                "base": socket("ATELIER_BASE", "The same base model that the run was trained on."),
                "dataset": socket("ATELIER_DATASET", "The pictures to learn; the same or others."),
                "extra_steps": number("INT", 500, 1, 10_000_000, 1, "How many steps to train on top of those done."),
                "run_name": text("Name of the new run; made from the first run's name when left empty."),
                "mode": combo(
                    list(MODES), "What happens when this very run exists; as in 'Train LoRA'.", default="resume"
                ),
            },
            "optional": {
                "optimizer": socket("ATELIER_OPTIMIZER", "Other learning rates; those of the run when left open."),
            },
            "hidden": {"prompt": "PROMPT"},
        }

    def go_on(
        self,
        run: RunRef,
        base: Base,
        dataset: Dataset,
        extra_steps: int,
        run_name: str,
        mode: str,
        optimizer: Choice | None = None,
        prompt: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Train on."""
        host = get_host()
        progress = host.progress(extra_steps)
        result = continue_run(
            run,
            base=base,
            dataset=dataset,
            extra_steps=extra_steps,
            output_dir=host.output_dir(),
            loras_dir=host.loras_dir(),
            cache_dir=host.cache_dir(),
            device=host.device(),
            progress=progress,
            prompt=dict(prompt) if prompt else None,
            optimizer=optimizer,
            run_name=run_name,
            mode=mode,
            around=host.training,
            index=index_if_usable(progress),
        )
        log.info("%s", result.report)
        return shown_result(result, "")


NODES = (TrainLora, ContinueTraining)
