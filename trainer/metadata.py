"""The metadata of a LoRA file, as kohya's scripts and the modelspec standard write it."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import known_sha256
from ..dataset.batches import effective_repeats
from ..dataset.captions import split_tags
from ..dataset.table import Dataset
from .names import differences, normal_blocks
from .optimizers._spec import ScheduledParams
from .plan import Plan
from .stage_text import stages_json
from .staged import stage_at

STAGES_KEY = "atelier.stages"
"""Says what came one after the other; the keys of kohya have room for one stage, and tell the last one's sizes."""

_LEGACY_START_BYTE = 0x100000
_LEGACY_BYTES = 0x10000


def legacy_model_hash(path: Path) -> str:
    """Returns the 8 hexadecimal digits by which old tools name a checkpoint.

    Source: AUTOMATIC1111 ``model_hash``: SHA-256 over 0x10000 bytes from 0x100000.
    """
    with open(path, "rb") as file:
        file.seek(_LEGACY_START_BYTE)
        return hashlib.sha256(file.read(_LEGACY_BYTES)).hexdigest()[:8]


def tag_frequency(datasets: Sequence[Dataset]) -> dict[str, dict[str, int]]:
    """Returns folder name -> tag (lower case) -> number of pictures, as ``ss_tag_frequency``."""
    counts: dict[str, dict[str, int]] = {}
    for dataset, number in _pictures(datasets):
        subset = dataset.subset_of(number)
        of_folder = counts.setdefault(subset.folder.name, {})
        for tag in (*split_tags(subset.caption_prefix), *dataset.tags.row(number)):
            of_folder[tag.lower()] = of_folder.get(tag.lower(), 0) + 1
    return counts


def _pictures(datasets: Sequence[Dataset]) -> Iterator[tuple[Dataset, int]]:
    return ((dataset, number) for dataset in datasets for number in range(len(dataset)))


def dataset_dirs(datasets: Sequence[Dataset], *, is_reg: bool) -> dict[str, dict[str, int]]:
    """Returns folder name -> repeats and number of pictures, as ``ss_dataset_dirs``; never a path."""
    found: dict[str, dict[str, int]] = {}
    for dataset, number in _pictures(datasets):
        subset = dataset.subset_of(number)
        if subset.is_reg == is_reg:
            entry = found.setdefault(subset.folder.name, {"n_repeats": subset.repeats, "img_count": 0})
            entry["img_count"] += 1
    return found


def fixed_metadata(plan: Plan, *, base_hash: str, started_at: float, session_id: int) -> dict[str, str]:
    """Returns everything that is the same in all files of a run; all values are texts.

    Args:
        plan: of the run.
        base_hash: SHA-256 of the base model's file.
        started_at: seconds since 1970.
        session_id: any number that tells one start of training from another.
    """
    said: dict[str, Any] = {
        **_run_values(plan),
        **_data_values(plan),
        "ss_session_id": session_id,
        "ss_training_started_at": started_at,
        "ss_sd_model_name": plan.checked.job.base.path.name,
        "ss_sd_model_hash": legacy_model_hash(plan.checked.job.base.path),
        "ss_new_sd_model_hash": base_hash,
    }
    return {key: _text(value) for key, value in said.items()}


def step_metadata(plan: Plan, *, step: int, epoch: int, finished_at: float, output_name: str) -> dict[str, str]:
    """Returns what differs between the files of a run: how far it was, when, and the file's name."""
    checked = plan.checked
    params = stage_at(checked.stages, step - 1).job.params
    said: dict[str, Any] = {
        "ss_training_finished_at": finished_at,
        "ss_output_name": output_name,
        "ss_steps": step,
        "ss_epoch": epoch,
        "modelspec.sai_model_spec": "1.0.1",
        **{key: value for key, value in _base_facts(plan).items() if key.startswith("modelspec.")},
        "modelspec.title": output_name,
        "modelspec.resolution": f"{params.resolution_px}x{params.resolution_px}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(finished_at)),
        "modelspec.timestep_range": f"{_setting(checked.job.objective.params, 'min_timestep', 0)},"
        f"{_setting(checked.job.objective.params, 'max_timestep', checked.family.num_train_timesteps)}",
        "modelspec.encoder_layer": params.clip_skip,
    }
    return {key: _text(value) for key, value in said.items()}


def _base_facts(plan: Plan) -> dict[str, Any]:
    return plan.checked.family.file_facts(plan.checked.job.base.variant)


def _vae_values(path: Path | None) -> dict[str, Any]:
    """Returns the names and hashes of a VAE that took the place of the checkpoint's own."""
    if path is None:
        return {"ss_vae_name": None}
    return {
        "ss_vae_name": path.name,
        "ss_vae_hash": legacy_model_hash(path),
        "ss_new_vae_hash": known_sha256(path),
    }


def _run_values(plan: Plan) -> dict[str, Any]:
    checked, job = plan.checked, plan.checked.job
    params, rates = job.params, checked.optimizer_params
    dropout = float(_setting(job.network.params, "dropout", 0.0))
    values: dict[str, Any] = {
        **{key: value for key, value in _base_facts(plan).items() if key.startswith("ss_")},
        "ss_network_module": checked.network.module,
        "ss_network_dim": checked.network.rank(job.network.params),
        "ss_network_alpha": checked.network.alpha(job.network.params),
        "ss_network_dropout": dropout or None,
        "ss_learning_rate": rates.lr_unet,
        "ss_unet_lr": rates.lr_unet if checked.train_unet else None,
        "ss_text_encoder_lr": rates.lr_text_encoder if checked.train_text_encoder else None,
        "ss_optimizer": _optimizer_text(plan),
        "ss_lr_scheduler": checked.schedule.name,
        "ss_lr_warmup_steps": rates.warmup_steps,
        "ss_max_train_steps": params.steps,
        "ss_num_epochs": math.ceil(plan.epochs),
        "ss_gradient_checkpointing": params.gradient_checkpointing,
        "ss_gradient_accumulation_steps": params.gradient_accumulation_steps,
        "ss_max_grad_norm": params.max_grad_norm,
        "ss_mixed_precision": "no" if params.precision == "fp32" else params.precision,
        "ss_full_fp16": False,
        "ss_clip_skip": params.clip_skip,
        "ss_max_token_length": job.captions.max_tokens,
        "ss_cache_latents": True,
        "ss_seed": params.seed,
        "ss_lowram": False,
        **_objective_values(job.objective.params),
        "ss_prior_loss_weight": params.prior_loss_weight,
        **_vae_values(plan.checked.job.base.vae_path),
        "ss_fp8_base": params.fp8_base,
    }
    arguments = _network_arguments(plan)
    if arguments:
        values["ss_network_args"] = arguments
    max_norm = float(_setting(job.network.params, "max_norm", 0.0))
    if max_norm > 0.0:
        values["ss_scale_weight_norms"] = max_norm
    return values


ARGUMENT_NAMES: Mapping[str, str] = {
    "conv_rank": "conv_dim",
    "tucker": "use_tucker",
    "rank_stabilized": "rs_lora",
    "up_lr_ratio": "loraplus_lr_ratio",
    "dora": "dora_wd",
}
"""What kohya's and LyCORIS' network arguments call our settings; the others have one name."""


def _network_arguments(plan: Plan) -> dict[str, Any]:
    """Returns ``ss_network_args``: what differs from the defaults, under the names of kohya and LyCORIS."""
    checked, job = plan.checked, plan.checked.job
    found: dict[str, Any] = {"algo": checked.network.algo} if checked.network.algo else {}
    for name, value in differences(job.network.params).items():
        if name not in ("rank", "alpha", "dropout", "max_norm"):
            found[ARGUMENT_NAMES.get(name, name)] = value
    if found.get("conv_dim"):
        found["conv_alpha"] = _setting(job.network.params, "conv_alpha", 1.0)
    if "dora_wd" in found:
        found["wd_on_output"] = found["dora_wd"] == "output"
        found["dora_wd"] = True
    if checked.targeting.is_plain:
        if job.blocks.strip():
            found["blocks"] = ",".join(checked.blocks)
    else:
        found["targets"] = normal_blocks(job.blocks)
    return found


def _objective_values(params: Any) -> dict[str, Any]:
    """Returns the keys by which kohya's scripts tell noise, loss and weighting; None is written for what is off."""
    said = params.to_json()
    weighting, loss_type = said.get("weighting", "none"), said.get("loss_type", "mse")
    levels, schedule_c = said.get("multires_iterations", 0), loss_type in ("huber", "smooth_l1")
    return {
        "ss_noise_offset": said.get("noise_offset") or None,
        "ss_noise_offset_random_strength": said.get("noise_offset_random", False),
        "ss_adaptive_noise_scale": said.get("noise_offset_adaptive") or None,
        "ss_multires_noise_iterations": levels or None,
        "ss_multires_noise_discount": said.get("multires_discount") if levels else None,
        "ss_ip_noise_gamma": said.get("ip_noise_gamma") or None,
        "ss_ip_noise_gamma_random_strength": said.get("ip_noise_random", False),
        "ss_zero_terminal_snr": said.get("zero_terminal_snr", "off") == "on",
        "ss_min_snr_gamma": said.get("min_snr_gamma") if weighting == "min_snr" else None,
        "ss_debiased_estimation": weighting == "debiased",
        "ss_loss_type": "l2" if loss_type == "mse" else loss_type,
        "ss_huber_schedule": said.get("huber_schedule") if schedule_c else None,
        "ss_huber_c": said.get("huber_c") if schedule_c else None,
        "ss_huber_scale": said.get("huber_scale") if schedule_c else None,
    }


def _data_values(plan: Plan) -> dict[str, Any]:
    datasets, stages = plan.checked.datasets, plan.checked.stages
    last = stages[-1]
    params, subsets = last.job.params, [subset for dataset in datasets for subset in dataset.subsets]
    return {
        "ss_num_train_images": plan.num_train_images,
        "ss_num_reg_images": plan.num_reg_images,
        "ss_num_batches_per_epoch": last.batches_per_epoch,
        "ss_batch_size_per_device": params.batch_size,
        "ss_total_batch_size": params.batch_size * params.gradient_accumulation_steps,
        "ss_resolution": f"({params.resolution_px}, {params.resolution_px})",
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": not params.upscale,
        "ss_min_bucket_reso": params.bucket_min_px,
        "ss_max_bucket_reso": params.bucket_max_px,
        "ss_bucket_info": last.buckets.info(effective_repeats(last.pictures)),
        "ss_color_aug": last.job.augment.rules().tints is not None,
        "ss_random_crop": last.job.augment.rules().random_crop,
        "ss_face_crop_aug_range": None,
        "ss_flip_aug": any(subset.flip for subset in subsets),
        "ss_shuffle_caption": any(subset.shuffle_captions for subset in subsets),
        "ss_keep_tokens": max(subset.keep_tokens for subset in subsets),
        "ss_caption_dropout_rate": max(subset.caption_dropout for subset in subsets),
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": max(subset.tag_dropout for subset in subsets),
        "ss_dataset_dirs": dataset_dirs(datasets, is_reg=False),
        "ss_reg_dataset_dirs": dataset_dirs(datasets, is_reg=True),
        "ss_tag_frequency": tag_frequency(datasets),
        **({STAGES_KEY: json.dumps(stages_json(stages), ensure_ascii=False)} if len(stages) > 1 else {}),
    }


def _optimizer_text(plan: Plan) -> str:
    settings = plan.checked.job.optimizer.params.to_json()
    shared = {parameter.name for parameter in ScheduledParams.parameters()}
    own = ",".join(f"{name}={value}" for name, value in settings.items() if name not in shared)
    return f"{plan.checked.optimizer.class_path.format(**settings)}({own})"


def _setting(params: Any, name: str, default: Any) -> Any:
    return getattr(params, name, default)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
