"""Converting LoRA files: other names, another number format, another algorithm; and what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ...core.progress import Progress
from ...families._spec import DIFFUSERS, KOHYA, NAMINGS
from .drafts import Draft, Made
from .factors import Factors, change_of
from .metadata import RECIPE
from .modules import LoraFile, LoraModule, check_finite
from .ranks import RankParams
from .resize import BaseWeight, resize

AS_IT_IS, PLAIN = "as it is", "LoRA"


@dataclass(frozen=True, kw_only=True)
class ConvertParams(Params):
    """Into what a LoRA file is converted."""

    naming: str = param(
        KOHYA,
        doc="Names of the modules: kohya (read by every tool), diffusers (peft's; the alphas go into the weights), "
        "comfyui (its own dotted names).",
        choices=NAMINGS,
    )
    algorithm: str = param(
        AS_IT_IS,
        doc="LoRA turns LoHa, LoKr and, with the base model wired, DoRA, OFT and (IA)^3 into plain LoRA modules.",
        choices=(AS_IT_IS, PLAIN),
    )
    rank: int = param(
        0,
        doc="With algorithm LoRA: the most ranks of a module; 0 keeps all there are, so that nothing is lost (a layer "
        "is then written as a whole difference where that is smaller).",
        minimum=0,
        maximum=4096,
        step=1,
    )


def convert(
    file: LoraFile,
    params: ConvertParams,
    *,
    base_weight: BaseWeight | None = None,
    progress: Progress | None = None,
) -> Draft:
    """The same LoRA in another form.

    Args:
        file: open.
        params: the form.
        base_weight: for modules whose change depends on the base model.
        progress: told, and may cancel.

    Raises:
        InputError: a plain LoRA is asked for, the change depends on the base model, and that was not given.
        FormatError: the file is damaged.
    """
    if params.algorithm == PLAIN:
        if base_weight is None and any(module.relative for module in file.modules):
            raise InputError(
                f"{file.name} holds DoRA, OFT or (IA)^3 modules, whose change depends on the base model: wire the base "
                "model it was trained on into 'base'."
            )
        rule = RankParams(rule="fixed", rank=params.rank) if params.rank else RankParams(rule="exact", rank=0)
        return resize(file, rule, base_weight=base_weight, progress=progress)
    modules = tuple(_as_it_is(file, module, params.naming) for module in file.modules)
    notes = () if params.naming != DIFFUSERS else (
        "ComfyUI's own loader does not know peft's names of attention layers; diffusers does, and so do the nodes of "
        "this pack that take a LoRA file apart.",
    )  # fmt: skip
    metadata = {key: value for key, value in file.metadata.items() if key != RECIPE}
    others = {key: file.tensor(key) for key in file.other_keys}
    return Draft(family=file.family, modules=modules, metadata=metadata, others=others, notes=notes)


def _as_it_is(file: LoraFile, module: LoraModule, naming: str) -> Made:
    """A module unchanged; peft's names know neither alphas nor a third factor, so a LoRA's go into its two there."""
    parts = file.parts(module)
    check_finite(parts, module, file.name)
    if naming == DIFFUSERS and module.algorithm == "lora" and not module.is_dora:
        change = change_of(module, parts)
        if isinstance(change, Factors):
            bias = {module.bias_part: parts[module.bias_part]} if module.bias_part else {}
            return Made(
                place=module.place, block=module.block, factors=change, parts=bias, energy=change.squared_norm(),
                rank_before=module.rank,
            )  # fmt: skip
    return Made(place=module.place, block=module.block, parts=parts, rank_before=module.rank)


MODELSPEC_TEXTS = ("title", "trigger_phrase", "description", "author", "tags", "license", "usage_hint")
"""What a person may say of a file, in modelspec's words."""


def edited(file: LoraFile, texts: Mapping[str, str], *, thumbnail: str | None = None, remove: bool = False) -> Draft:
    """The same tensors with other words about them.

    Args:
        file: open.
        texts: by modelspec's names without the prefix; an empty text leaves what is there.
        thumbnail: a picture as a data URL; None leaves what is there.
        remove: takes out everything else that the file says of its training (``ss_`` keys but the few that loaders
            need).

    Raises:
        InputError: a name is not one of modelspec's.
        FormatError: the file is damaged.
    """
    unknown = [name for name in texts if name not in MODELSPEC_TEXTS]
    if unknown:
        raise InputError(f"modelspec knows no {unknown[0]!r}; allowed are {', '.join(MODELSPEC_TEXTS)}.")
    kept = {key: value for key, value in file.metadata.items() if not remove or _needed(key)}
    kept.update({f"modelspec.{name}": text.strip() for name, text in texts.items() if text.strip()})
    if thumbnail is not None:
        kept["modelspec.thumbnail"] = thumbnail
    modules = tuple(_as_it_is(file, module, KOHYA) for module in file.modules)
    others = {key: file.tensor(key) for key in file.other_keys}
    title = kept.get("modelspec.title", "")
    return Draft(family=file.family, modules=modules, metadata=kept, others=others, title=title)


def _needed(key: str) -> bool:
    """What loaders and pages need to know a file's kind; kohya's scripts keep the same ones."""
    return key.startswith("modelspec.") or key in (
        "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
    )  # fmt: skip
