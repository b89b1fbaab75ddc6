"""What a run's manifest says, and the hash of the data it was trained on."""

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..dataset.columns import new_digest
from ..dataset.table import Dataset, options_of
from .config import NUMERICS_VERSION
from .names import hash_of, origins
from .plan import Checked
from .stage_text import stages_json

VERSIONS_OF = ("torch", "diffusers", "transformers", "safetensors", "numpy", "Pillow")


def data_hash(dataset: Dataset, contents: Sequence[str], masks: Sequence[str] = ()) -> str:
    """Returns a hash of everything of the data set that decides the numbers; not of where it lies.

    Args:
        dataset: the pictures.
        contents: hash of every picture's file.
        masks: hash of what every mask holds, "" for none; empty for a data set without masks.
    """
    parts = [repr(options_of(subset)) for subset in dataset.subsets]
    for number, content in enumerate(contents):
        subset = int(dataset.subset_index[number])
        parts.extend((content, str(subset), dataset.caption(number)))
    if any(masks):
        parts.extend(("masks", *masks))
        dataset = replace(dataset, masks=None)
    if any(column is not None for column in (dataset.crops, dataset.focus, dataset.weights, dataset.masks)):
        digest = new_digest()
        dataset.update_extras_digest(digest)
        parts.append(digest.hexdigest())
    return hash_of(parts)


def make_manifest(
    checked: Checked, *, base_sha256: str, base_id: str, content_hash: str, prompt: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the settings with the origin of every value, the data, the base and the versions."""
    job, datasets = checked.job, checked.datasets
    return {
        "total_steps": job.params.steps,
        "config": job.config(),
        "origins": {
            "train": origins(job.params),
            "network": origins(job.network.params),
            "optimizer": origins(job.optimizer.params),
            "objective": origins(job.objective.params),
            **({"augment": origins(job.augment)} if "augment" in job.config() else {}),
            **({"captions": origins(job.captions)} if "captions" in job.config() else {}),
        },
        "base": {
            "name": job.base.name,
            "family": job.base.family,
            "sha256": base_sha256,
            "identity": base_id,
            "prediction_type": job.base.prediction_type,
            "zero_terminal_snr": job.base.zero_terminal_snr,
            "vae": job.base.vae_name or None,
            "loras": [
                {"name": lora.name, "strength_model": lora.strength_model, "strength_clip": lora.strength_clip}
                for lora in job.base.loras
            ],
        },
        "data": {
            "name": ", ".join(dict.fromkeys(dataset.root.name for dataset in datasets)),
            "hash": content_hash,
            "num_images": sum(len(dataset) for dataset in datasets),
            "subsets": [entry for dataset in datasets for entry in _subsets_json(dataset)],
            "history": [note for dataset in datasets for note in dataset.history],
        },
        **({"stages": stages_json(checked.stages)} if job.stages else {}),
        "versions": {"numerics": NUMERICS_VERSION, "python": platform.python_version(), **_library_versions()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "prompt": json.loads(json.dumps(prompt)) if prompt is not None else None,
    }


def _subsets_json(dataset: Dataset) -> list[dict[str, Any]]:
    counts = [int((dataset.subset_index == number).sum()) for number in range(len(dataset.subsets))]
    return [
        {
            "folder": subset.folder.name,
            "concept": subset.concept,
            "repeats": subset.repeats,
            "is_reg": subset.is_reg,
            "num_images": count,
        }
        for subset, count in zip(dataset.subsets, counts, strict=True)
    ]


def _library_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
