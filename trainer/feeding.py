"""What a stage is fed with, put together: latents, captions, masks and texts."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.progress import Progress
from ..dataset.caption_forms import CaptionForms
from ..families._spec import Components, Family
from .config import Job
from .feed import Feed
from .kohya_latents import KohyaLatents
from .latents import LatentCache
from .masks import LatentMasks
from .plan import Checked
from .staged import Stage
from .texts import KeptTexts, LiveTexts, Texts


def load_vae(job: Job, family: Family, device: torch.device) -> Any:
    """Loads the VAE of a job, in fp32, for it gives values that are not finite in fp16."""
    path, vae_path = job.base.path, job.base.vae_path
    return family.load(path, parts=("vae",), dtype=torch.float32, device=device, vae_path=vae_path).vae


def latent_cache(
    stage: Stage,
    contents: Sequence[str],
    cache_dir: Path,
    vae_identity: str,
    given: KohyaLatents,
    progress: Progress,
) -> LatentCache:
    """The latents of a stage's pictures, by their keys; nothing is encoded yet.

    Args:
        stage: checked.
        contents: content hash of every picture.
        cache_dir: folder of all caches.
        vae_identity: what tells one VAE from another.
        given: latents of kohya's scripts that lie beside the pictures.
        progress: told of damaged files.
    """
    dataset = stage.pictures
    return LatentCache(
        cache_dir,
        dataset,
        buckets=stage.buckets,
        contents=contents,
        vae_identity=vae_identity,
        flips=[dataset.subset_of(number).flip for number in range(len(dataset))],
        rules=stage.job.augment.rules(),
        progress=progress,
        given=given,
    )


def forms_of(checked: Checked, stage: Stage) -> CaptionForms:
    """The captions of a stage; no fixed forms where a trained encoder reads every caption anew."""
    augment = checked.job.augment
    forms = 0 if checked.train_text_encoder else augment.caption_variants
    warmup = checked.job.captions.warmup(checked.job.params.steps)
    return CaptionForms(stage.pictures, forms=forms, wildcards=augment.wildcards, warmup=warmup)


def texts_of(
    checked: Checked,
    components: Components,
    forms: Sequence[CaptionForms],
    text_identity: str,
    cache_dir: Path,
    device: torch.device,
    progress: Progress,
) -> Texts:
    """Live encoding where the encoder is trained or captions vary; else kept states, the encoder freed if all fit.

    Args:
        checked: the job.
        components: with the text encoders, which leave it where they are not needed any longer.
        forms: the captions of every stage.
        text_identity: what tells these text encoders from others.
        cache_dir: folder of all caches.
        device: of the training.
        progress: shown, and may cancel.
    """
    family, options = checked.family, checked.job.text_options()
    if checked.train_text_encoder or any(each.vary and each.forms == 0 for each in forms):
        return LiveTexts(family, components, options=options, with_gradients=checked.train_text_encoder)
    encoder = Components(text_encoders=components.text_encoders, tokenizers=components.tokenizers)
    texts = KeptTexts(family, encoder, options=options, folder=cache_dir, identity=text_identity, device=device)
    if texts.fill(itertools.chain.from_iterable(each.texts() for each in forms), progress):
        texts.free()
        components.text_encoders = ()
    return texts


def feed_of(
    stage: Stage,
    latents: LatentCache,
    texts: Texts,
    forms: CaptionForms,
    family: Family,
    device: torch.device,
    *,
    masks: LatentMasks | None,
) -> Feed:
    """The batches of a stage."""
    return Feed(
        dataset=stage.pictures,
        buckets=stage.buckets,
        batch_size=stage.job.params.batch_size,
        seed=stage.seed,
        latents=latents,
        texts=texts,
        forms=forms,
        small_batches=stage.job.augment.small_batches,
        latent_scale=family.latent_scale,
        prior_loss_weight=stage.job.params.prior_loss_weight,
        device=device,
        takes_sizes=family.takes_sizes,
        masks=masks,
    )
