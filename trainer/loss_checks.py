"""What is checked, and said, of a run's captions, masks and regularisation before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..core.tensors import read_header
from ..dataset.captions import training_caption
from ..dataset.table import Dataset
from ..dataset.tokens import CHUNK_TOKENS, caption_tokens
from ..dataset.words import counted, printable
from ..families._emphasis import parse_emphasis
from ..families._spec import Family
from .caption_params import TOKEN_LENGTHS
from .config import Job

NUM_POSITIONS = 77


def check_encoders(job: Job, family: Family) -> None:
    """Checks what the settings ask of each text encoder, by the sizes in the base's file.

    Raises:
        InputError: a layer or a place for a token is not there.
    """
    sizes, options = family.sizes(read_header(job.base.path)), job.text_options()
    if options.clip_skip_2 > 0 and len(family.text_encoders) < 2:
        raise InputError(
            f"clip_skip_2 is {options.clip_skip_2}, but {job.base.name} ({family.title}) has one text encoder: set "
            "clip_skip_2 to 0."
        )
    for number, spec in enumerate(family.text_encoders):
        num_layers = int(sizes[spec.part]["num_hidden_layers"])
        own = "clip_skip_2" if number > 0 and options.clip_skip_2 > 0 else "clip_skip"
        if options.clip_skip_of(number) > num_layers:
            raise InputError(
                f"{own} is {options.clip_skip_of(number)}, but the {spec.title} of {job.base.name} has {num_layers} "
                f"layers: allowed is 1 to {num_layers}."
            )
        positions = int(sizes[spec.part].get("max_position_embeddings", NUM_POSITIONS))
        if positions < NUM_POSITIONS:
            raise InputError(
                f"The {spec.title} of {job.base.name} has places for {positions} tokens, and captions are read in "
                f"parts of {CHUNK_TOKENS} and two marks: use a base with {NUM_POSITIONS} places."
            )


def check_loss(job: Job, datasets: Sequence[Dataset], *, train_unet: bool, train_text_encoder: bool) -> None:
    """Checks the settings of the loss and of what changes on the way against the run and its pictures.

    Raises:
        InputError: a setting has nothing to act on, or lies beyond the run.
    """
    params, steps = job.params, job.params.steps
    stop = job.text_encoder_stop_step()
    if stop is not None and not (job.parent and stop >= steps):
        _check_stop(stop, steps, train_unet=train_unet, train_text_encoder=train_text_encoder)
    warmup = job.captions.warmup(steps)
    if warmup is not None and warmup.steps > steps and not job.parent:
        raise InputError(
            f"token_warmup is {warmup.steps} steps and the run has {steps}: the last tags would never be shown; give a "
            "warm-up shorter than the run, or a share of it below 1."
        )
    if warmup is not None and job.augment.caption_variants > 0 and not train_text_encoder:
        raise InputError(
            f"token_warmup is {warmup.steps} steps and caption_variants is {job.augment.caption_variants}: fixed forms "
            "of captions cannot grow; set one of the two to 0."
        )
    if params.prior_preservation and not any(bool(dataset.is_reg.any()) for dataset in datasets):
        raise InputError(
            "prior_preservation is on, but the data set holds no regularisation picture: open one with reg_folder, or "
            "mark pictures with 'Mark Regularisation'; or switch it off."
        )
    if params.prior_preservation and params.prior_loss_weight == 0.0:
        raise InputError(
            "prior_preservation is on and prior_loss_weight is 0: the base's answers would be asked for and not "
            "counted; raise prior_loss_weight, or switch prior_preservation off."
        )
    has_masks = any(dataset.masks is not None for dataset in datasets)
    for name in ("unmasked_weight", "normalize_masks"):
        if getattr(params, name) and not has_masks:
            raise InputError(
                f"{name} is {getattr(params, name)}, but the data set has no masks: put 'Set Masks' before the "
                f"training, or set {name} back."
            )
    for dataset in datasets:
        _check_weights(dataset)


def _check_stop(stop: int, steps: int, *, train_unet: bool, train_text_encoder: bool) -> None:
    if not train_text_encoder:
        raise InputError(
            f"text_encoder_stop is step {stop}, but the text encoder is not trained: set it to 0, or train the text "
            "encoder."
        )
    if stop >= steps:
        raise InputError(
            f"text_encoder_stop is step {stop} and the run has {steps} steps: give an earlier step, a share below 1, "
            "or 0 to train the text encoder to the end."
        )
    if not train_unet:
        raise InputError(
            f"text_encoder_stop is step {stop}, but only the text encoder is trained: nothing would be learned after "
            "it; set steps to it, or train the UNet."
        )


def _check_weights(dataset: Dataset) -> None:
    weights = dataset.loss_weights()
    if weights is None:
        return
    training = ~dataset.is_reg
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0.0))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"The loss weight of {printable(dataset.shown(row))} is {weights[row]:g}: give a finite number of at "
            "least 0."
        )
    if bool((weights[training] == 0.0).all()):
        raise InputError("The loss weights of all training pictures are 0: nothing would be learned; raise some.")


def weight_notes(job: Job, dataset: Dataset) -> list[str]:
    """Returns what a person should know of weights in captions, where they are read as such.

    Raises:
        InputError: a weight is not finite, or beyond what is allowed.
    """
    if not job.captions.weighted_captions:
        return []
    unbalanced: list[int] = []
    torn = weighted = 0
    for row in range(len(dataset)):
        subset = dataset.subset_of(row)
        caption = ", ".join(part for part in (subset.caption_prefix, dataset.caption(row)) if part)
        if not any(mark in caption for mark in "()[]"):
            continue
        found = parse_emphasis(caption)
        if found.num_unbalanced:
            unbalanced.append(row)
        weighted += any(weight != 1.0 for _, weight in found.segments)
        moves = subset.shuffle_captions or subset.tag_dropout > 0.0 or job.captions.token_warmup > 0.0
        torn += moves and any("," in text.strip(" ,") and weight != 1.0 for text, weight in found.segments)
    notes = []
    if unbalanced:
        notes.append(
            f"{counted(len(unbalanced), 'caption')} with brackets that have no partner, such as that of "
            f"{printable(dataset.shown(unbalanced[0]))}: these brackets are read as plain text."
        )
    if torn:
        notes.append(
            f"{counted(torn, 'caption')} with weights around several tags, which shuffling and dropping tear apart: "
            "give each tag brackets of its own."
        )
    if not weighted:
        notes.append("weighted_captions is on, but no caption holds a weight.")
    return notes


def loss_lines(job: Job, datasets: Sequence[Dataset]) -> list[str]:
    """Returns what the plan says of masks, regularisation, captions and the text encoder's end, where there is any."""
    params, captions, said = job.params, job.captions, list[str]()
    masked = sum(
        dataset.mask(row) != "" for dataset in datasets if dataset.masks is not None for row in range(len(dataset))
    )
    if masked:
        equal = ", areas made equal" if params.normalize_masks else ""
        said.append(f"masks on {counted(masked, 'picture')} (black counts {params.unmasked_weight:g}{equal})")
    if params.prior_preservation:
        said.append("regularisation pictures keep the base's own answers")
    if captions.max_tokens > CHUNK_TOKENS:
        said.append(f"captions of up to {captions.max_tokens} tokens, joined as {captions.long_captions} does")
    if captions.weighted_captions:
        said.append("words in brackets weighted")
    warmup = captions.warmup(params.steps)
    if warmup is not None:
        said.append(f"from {counted(warmup.min_tags, 'tag')} to all within {counted(warmup.steps, 'step')}")
    stop = job.text_encoder_stop_step()
    if stop is not None:
        said.append(f"text encoder trained for {counted(stop, 'step')}")
    return [f"Also: {'; '.join(said)}."] if said else []


def length_notes(job: Job, datasets: Sequence[Dataset], count: Callable[[Sequence[str]], Sequence[int]]) -> list[str]:
    """Returns what a person should know of captions that are longer than what is read.

    Args:
        job: with the settings.
        datasets: of the run.
        count: tokens of texts, without marks.
    """
    limit = job.captions.max_tokens
    too_long, longest, of = 0, 0, 0
    for dataset in datasets:
        lengths = caption_tokens(dataset, count)
        _recount(job, dataset, lengths, count)
        too_long, of = too_long + int((lengths > limit).sum()), of + len(dataset)
        longest = max(longest, int(lengths.max(initial=0)))
    if too_long == 0:
        return []
    enough = next((length for length in TOKEN_LENGTHS if length >= longest), None)
    larger = enough or (TOKEN_LENGTHS[-1] if limit < TOKEN_LENGTHS[-1] else None)
    cure = f"set max_tokens to {larger} in 'Training Captions'" if larger else "shorten them"
    return [
        f"{too_long} of {counted(of, 'caption')} {'is' if too_long == 1 else 'are'} longer than the {limit} tokens "
        f"that are read, the longest has {longest}: what comes after is not trained; {cure}."
    ]


def _recount(
    job: Job, dataset: Dataset, lengths: NDArray[np.int64], count: Callable[[Sequence[str]], Sequence[int]]
) -> None:
    """Counts anew what may be too long only for its marks, which are not read."""
    marked = any(subset.keep_tokens_separator or subset.secondary_separator for subset in dataset.subsets)
    if not (marked or job.captions.weighted_captions):
        return
    for row in np.flatnonzero(lengths > job.captions.max_tokens).tolist():
        subset = dataset.subset_of(row)
        still = replace(subset, shuffle_captions=False, caption_dropout=0.0, tag_dropout=0.0)
        text = training_caption(dataset.tags.row(row), still, seed=0)
        if job.captions.weighted_captions:
            text = parse_emphasis(text).text
        lengths[row] = list(count([text]))[0]
