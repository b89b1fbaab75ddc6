"""Opening the checkpoints of a merge: names made alike, parts checked, what is odd about a file said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..core.errors import FormatError, InputError
from ..core.stream import TensorReader
from ..core.tensors import Header
from ..families._identify import identify
from ..families._names import vae_to_ldm
from ..families._spec import families, get_family
from ..families._vae import vae_prefix
from .block_rows import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX
from .expression import Model

EMA_PREFIX = "model_ema."
EMA_DROP, EMA_KEEP, EMA_USE = "drop", "keep", "use"
CONV_IN = f"{UNET_PREFIX}input_blocks.0.0.weight"
POSITION_IDS = "embeddings.position_ids"
TEXT_TO_IMAGE_CHANNELS = 4
WIDE_CHANNELS = {8: "instruct-pix2pix", 9: "inpainting"}
VAE_LEVELS = 4
_NAI_PREFIX = "cond_stage_model.transformer."
_NAI_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
_OPTIONAL_ENDS = (POSITION_IDS, "logit_scale", "text_projection", "text_projection.weight")
_SHOWN = 3

PARTS: Mapping[str, tuple[str, ...]] = {
    "UNet": (UNET_PREFIX,),
    "text encoder": TEXT_PREFIXES,
    "VAE": (VAE_PREFIX,),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies.

    Attributes:
        reader: Of the file.
        key: In that file.
    """

    reader: TensorReader
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.reader.header.shapes[self.key]

    @property
    def dtype(self) -> str:
        """Its type in the format's words."""
        return self.reader.header.dtypes[self.key]


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A checkpoint, open for reading, its keys in the names that all others have.

    Attributes:
        model: Which it is.
        family: Its family's name.
        places: Where every tensor lies, by its key in the plain layout.
        header: Of its file.
        channels: Inputs of its UNet: 4, or 8 and 9 of the wide kinds.
        said: What was odd and how it was mended, one sentence each.
    """

    model: Model
    family: str
    places: Mapping[str, Place]
    header: Header
    channels: int
    said: tuple[str, ...] = field(default=())

    def has_part(self, prefixes: Sequence[str]) -> bool:
        """Whether it holds a part."""
        return any(key.startswith(tuple(prefixes)) for key in self.places)


@contextmanager
def opened(models: Sequence[Model], *, ema: str = EMA_DROP) -> Iterator[dict[Model, OpenModel]]:
    """Opens all models of a merge and makes sure that they can be merged with each other.

    Args:
        models: Which; the first decides the layout.
        ema: What becomes of averaged weights: `EMA_DROP`, `EMA_KEEP` or `EMA_USE`.

    Raises:
        FormatError: A file is no checkpoint, damaged, or lacks tensors.
        InputError: They are of different kinds.
        StorageError: A file cannot be read.
    """
    with ExitStack() as stack:
        found = {model: _open(model, ema, stack) for model in models}
        _check_alike(list(found.values()))
        yield found


def _open(model: Model, ema: str, stack: ExitStack) -> OpenModel:
    reader = stack.enter_context(_reader(model.path))
    family, channels = _family(model, reader.header)
    said: list[str] = []
    places = {key: Place(reader=reader, key=key) for key in reader.header.shapes}
    places = _plain_names(places, model, said)
    places = _averaged(places, ema, model, said)
    if model.vae_path is not None:
        vae = stack.enter_context(_reader(model.vae_path))
        places = {key: place for key, place in places.items() if not key.startswith(VAE_PREFIX)}
        places.update(_vae_places(vae))
        said.append(f"{model.name}: the VAE is that of {model.vae_name or model.vae_path.name}")
    if channels in WIDE_CHANNELS:
        said.append(f"{model.name} is an {WIDE_CHANNELS[channels]} model: its UNet has {channels} input channels")
    said += _broken_ids(places, model)
    return OpenModel(
        model=model, family=family, places=places, header=reader.header, channels=channels, said=tuple(said)
    )


def _reader(path: Path) -> TensorReader:
    if path.suffix.lower() not in (".safetensors", ".sft"):
        identify(path)  # says what it is, and how an old checkpoint is converted
    return TensorReader(path)


def _family(model: Model, header: Header) -> tuple[str, int]:
    """The family of a file by its header, and the inputs of its UNet."""
    shape = header.shapes.get(CONV_IN, ())
    channels = shape[1] if len(shape) == 4 else 0
    if channels in WIDE_CHANNELS:
        narrow = (shape[0], TEXT_TO_IMAGE_CHANNELS, *shape[2:])
        header = replace(header, shapes={**header.shapes, CONV_IN: narrow})
    for name, family in families().items():
        if family.detect(header):
            return name, channels
    return identify(model.path).family, channels


def _plain_names(places: dict[str, Place], model: Model, said: list[str]) -> dict[str, Place]:
    """NovelAI's names of the text encoder -> the usual ones."""
    renamed = {}
    for key, place in places.items():
        inner = key[len(_NAI_PREFIX) :] if key.startswith(_NAI_PREFIX) else ""
        renamed[f"{_NAI_PREFIX}text_model.{inner}" if inner.startswith(_NAI_PARTS) else key] = place
    count = sum(1 for key in renamed if key not in places)
    if count:
        said.append(f"{model.name}: {count} text-encoder tensors had NovelAI's names and were renamed")
    return renamed


def _averaged(places: dict[str, Place], ema: str, model: Model, said: list[str]) -> dict[str, Place]:
    """What becomes of the averaged copies of the UNet's weights."""
    averages = {key: place for key, place in places.items() if key.startswith(EMA_PREFIX)}
    if not averages or ema == EMA_KEEP:
        if averages:
            said.append(f"{model.name}: its {len(averages)} EMA tensors are kept (the first model's, unmerged)")
        return places
    rest = {key: place for key, place in places.items() if key not in averages}
    if ema == EMA_USE:
        used = 0
        for key in rest:
            averaged = EMA_PREFIX + key[len("model.") :].replace(".", "") if key.startswith(UNET_PREFIX) else ""
            if averaged in averages and averages[averaged].shape == rest[key].shape:
                rest[key] = averages[averaged]
                used += 1
        said.append(f"{model.name}: {used} UNet tensors are replaced by their EMA averages")
    else:
        said.append(f"{model.name}: {len(averages)} EMA tensors are left out")
    return rest


def _vae_places(reader: TensorReader) -> dict[str, Place]:
    """The tensors of a file with a VAE by their keys in a checkpoint; the layouts of LDM and of diffusers.

    Raises:
        FormatError: The file holds no VAE, or keys that no VAE has.
    """
    prefix = vae_prefix(reader.header, reader.path)
    keys = [key for key in reader.header.shapes if key.startswith(prefix)]
    is_diffusers = any("_blocks." in key for key in keys)
    found: dict[str, Place] = {}
    for key in keys:
        inner = key[len(prefix) :]
        if not inner.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            continue
        name = vae_to_ldm(inner, VAE_LEVELS) if is_diffusers else inner
        if name is None:
            raise FormatError(f"{reader.path.name} has the VAE key {key}, which is not known; use another VAE file")
        found[f"{VAE_PREFIX}{name}"] = Place(reader=reader, key=key)
    return found


def _broken_ids(places: Mapping[str, Place], model: Model) -> list[str]:
    """Position ids that are not 0, 1, 2 ... as int64, as merging in half precision leaves them."""
    said = []
    for key, place in places.items():
        if key.endswith(POSITION_IDS):
            ids = place.reader.tensor(place.key).reshape(-1)
            wrong = torch.nonzero(ids.double() != torch.arange(ids.numel(), dtype=torch.float64)).reshape(-1).tolist()
            if wrong or place.dtype != "I64":
                shown = ", ".join(map(str, wrong[:8])) + (" ..." if len(wrong) > 8 else "")
                fault = f"the position ids {shown} were wrong" if wrong else f"the position ids were {place.dtype}"
                said.append(f"{model.name}: {fault}; they are written anew as int64 0 to {ids.numel() - 1}")
    return said


# --- do they fit each other ---------------------------------------------------------------------------------------


def _check_alike(models: Sequence[OpenModel]) -> None:
    first = models[0]
    for other in models[1:]:
        if other.family != first.family:
            one, two = get_family(first.family).title, get_family(other.family).title
            raise InputError(
                f"{first.model.name} is a {one} model and {other.model.name} a {two} model; only models of one kind "
                "can be merged"
            )
    for name, prefixes in PARTS.items():
        holders = [model for model in models if model.has_part(prefixes)]
        wanted = {key for model in holders for key in model.places if _is_needed(key, prefixes)}
        for model in holders[1:]:
            _check_shapes(holders[0], model, wanted & set(holders[0].places) & set(model.places))
        for model in holders:
            missing = sorted(wanted - set(model.places))
            if missing:
                raise FormatError(
                    f"{model.model.name} lacks {len(missing)} tensors of the {name} that others have "
                    f"({', '.join(missing[:_SHOWN])}{' ...' if len(missing) > _SHOWN else ''}); it is incomplete: "
                    "download it again or leave it out"
                )
    if not any(model.has_part(PARTS["text encoder"]) for model in models):
        raise FormatError(f"{first.model.name} has no text encoder, and no other model has; add a full checkpoint")


def _is_needed(key: str, prefixes: Sequence[str]) -> bool:
    return key.startswith(tuple(prefixes)) and not key.endswith(_OPTIONAL_ENDS)


def _check_shapes(first: OpenModel, other: OpenModel, keys: set[str]) -> None:
    for key in sorted(keys):
        one, two = first.places[key].shape, other.places[key].shape
        if one == two or key == CONV_IN or _bare(one) == _bare(two):
            continue
        raise InputError(
            f"{key} has the shape {list(one)} in {first.model.name} and {list(two)} in {other.model.name}; they are "
            "not versions of one model and cannot be merged"
        )


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing sizes of 1: a 1x1 convolution and a linear layer hold the same numbers."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]
