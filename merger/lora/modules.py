"""A LoRA file as modules: which layer each changes, by one name for all namings, by which algorithm, of which sizes.

Only the header and the alphas are read when a file is opened; a module's tensors are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ...core.errors import FormatError
from ...core.stream import TensorReader
from ...core.tensors import Header
from ...families._spec import KOHYA, Family, Place, get_family
from ...networks._apply import ALPHA, split_names
from ...networks._dora import DORA
from ...networks._spec import get_network, network_of_parts
from .handle import Lora, lora_family

EMBEDDINGS = "bundle_emb."
"""Beginning of the keys of embeddings that travel in a LoRA file; they are no modules and are carried along."""

_BIASES = ("diff_b", "b_norm")
_RankOf = Callable[[Mapping[str, Tensor]], int | None]


@dataclass(frozen=True, kw_only=True)
class LoraModule:
    """One module of a LoRA file.

    Attributes:
        stem: as the file names it.
        name: the same layer's stem in kohya's naming of the family, whatever the file's own is.
        place: the layer.
        block: of block weights: `IN04`, `MID`, `OUT03`, `TE` ...
        algorithm: name of its network: `lora` (LoCon and DoRA too), `loha`, `lokr`, `full`, `norm`, `diag_oft`, `ia3`.
        keys: of its tensors in the file, by part as kohya or LyCORIS writes it (`lora_down.weight`, `alpha` ...).
        shapes: of the parts.
        dtypes: of the parts, in the file's words (`F16`).
        rank: of the factors; None for algorithms without one.
        alpha: as the file says it; None where it says none, which every loader reads as a scale of 1.
        kernel: of the layer, (3, 3) or (1, 1); empty where it is no convolution.
        is_dora: whether the base weight takes part in its change, as the length of its channels.
    """

    stem: str
    name: str
    place: Place
    block: str
    algorithm: str
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    rank: int | None
    alpha: float | None
    kernel: tuple[int, ...]
    is_dora: bool

    @property
    def scale(self) -> float:
        """The factor on the product of the parts: alpha / rank, 1 without one of them."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @property
    def is_text(self) -> bool:
        """Whether it is of a text encoder."""
        return self.place.part != "unet"

    @property
    def relative(self) -> bool:
        """Whether its change depends on the base weight: DoRA, OFT, (IA)^3."""
        return self.is_dora or get_network(self.algorithm).relative

    @property
    def bias_part(self) -> str | None:
        """The part that changes the layer's bias, if one does."""
        return next((part for part in _BIASES if part in self.keys), None)

    @property
    def vector_part(self) -> str | None:
        """The part that changes a weight which is no matrix, of a norm; None for all other modules."""
        part = next((part for part in ("w_norm", "diff") if part in self.keys), None)
        return part if part is not None and len(self.shapes[part]) == 1 else None

    @property
    def is_bias_alone(self) -> bool:
        """Whether nothing but the bias is changed."""
        return all(part in (*_BIASES, ALPHA) for part in self.keys)

    @property
    def is_matrix(self) -> bool:
        """Whether it changes a matrix or a convolution, which has a rank."""
        return self.vector_part is None and not self.is_bias_alone

    @property
    def num_numbers(self) -> int:
        """How many numbers its tensors hold, alpha left out."""
        return sum(_count(shape) for part, shape in self.shapes.items() if part != ALPHA)

    @property
    def is_spatial(self) -> bool:
        """Whether it is a convolution with a kernel larger than 1x1."""
        return any(size > 1 for size in self.kernel)


class LoraFile:
    """An open LoRA file, read by any number of threads; use it as a context."""

    def __init__(self, path: Path, name: str, *, family: str | None = None) -> None:
        """Reads the header and the alphas.

        Args:
            path: the file.
            name: as a person chose it, for messages.
            family: its model family; by default as the file's names, shapes and metadata say.

        Raises:
            FormatError: not a LoRA; of a family, a layer or an algorithm that is not known; damaged.
            StorageError: the file cannot be read.
        """
        self.path, self.name = Path(path), name
        self._file = TensorReader(self.path)
        self.family: Family = get_family(family or lora_family(self._file.header, name))
        self.modules, self.other_keys = self._modules()

    @classmethod
    def of(cls, lora: Lora) -> LoraFile:
        """The file of a handle."""
        return cls(lora.path, lora.name, family=lora.family)

    def __enter__(self) -> LoraFile:
        """Opens the file."""
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def header(self) -> Header:
        """Of the file."""
        return self._file.header

    @property
    def metadata(self) -> dict[str, str]:
        """Of the file."""
        return self._file.metadata

    def parts(self, module: LoraModule, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A module's tensors by part, alpha among them, on the CPU; `networks._apply` takes them.

        Args:
            module: of this file.
            dtype: to convert to; None keeps the file's.
        """
        return {part: self._file.tensor(key, dtype=dtype) for part, key in module.keys.items()}

    def tensor(self, key: str) -> Tensor:
        """One tensor by its key in the file."""
        return self._file.tensor(key)

    def by_name(self) -> dict[str, LoraModule]:
        """The modules by kohya's stem."""
        return {module.name: module for module in self.modules}

    def _modules(self) -> tuple[tuple[LoraModule, ...], tuple[str, ...]]:
        named, unknown = split_names(self._file.keys())
        others = tuple(key for key in unknown if key.startswith(EMBEDDINGS))
        strange = [key for key in unknown if not key.startswith(EMBEDDINGS)]
        if strange:
            raise FormatError(
                f"{self.name} holds {len(strange)} tensors of an algorithm that is not known here, such as "
                f"{strange[0]}; known are LoRA, LoCon, DoRA, LoHa, LoKr, OFT, (IA)^3, full differences and norms"
            )
        with self._file:
            modules = tuple(self._module(stem, keys) for stem, keys in named.items())
        self._refuse_twins(modules)
        return modules, others

    def _module(self, stem: str, keys: Mapping[str, str]) -> LoraModule:
        place = self.family.place_of_stem(stem)
        if place is None:
            raise FormatError(
                f"{self.name} changes {stem!r}, which is no layer of {self.family.title}; "
                "the file is of another kind of model, or damaged"
            )
        shapes = {part: self._file.shape(key) for part, key in keys.items()}
        own = {part: torch.empty(shape, device="meta") for part, shape in shapes.items() if part != ALPHA}
        network = network_of_parts(own, stem=stem)
        name = self.family.stem_of_place(place, KOHYA)
        return LoraModule(
            stem=stem,
            name=name,
            place=place,
            block=self.family.block_of_stem(name),
            algorithm=network.name,
            keys=dict(keys),
            shapes=shapes,
            dtypes={part: self._file.header.dtypes[key] for part, key in keys.items()},
            rank=self._rank(network.rank_of, own, stem),
            alpha=self._alpha(keys),
            kernel=self.family.kernel_of(place),
            is_dora=DORA in keys,
        )

    def _rank(
        self, rank_of: Callable[[Mapping[str, Tensor]], int | None], parts: Mapping[str, Tensor], stem: str
    ) -> int | None:
        try:
            rank = rank_of(parts)
        except (IndexError, KeyError) as cause:
            raise FormatError(
                f"{self.name} holds a module {stem!r} whose parts are damaged; download it again"
            ) from cause
        if rank is not None and rank < 1:
            raise FormatError(f"{self.name} holds a module {stem!r} of rank 0; it is damaged, export it again")
        return rank

    def _alpha(self, keys: Mapping[str, str]) -> float | None:
        if ALPHA not in keys:
            return None
        value = self._file.tensor(keys[ALPHA])
        if value.numel() != 1:
            raise FormatError(
                f"{self.name}: {keys[ALPHA]} has the shape {list(value.shape)}, an alpha is one number; "
                "the file is damaged, export it again"
            )
        return float(value)

    def _refuse_twins(self, modules: tuple[LoraModule, ...]) -> None:
        seen: dict[str, str] = {}
        for module in modules:
            if module.name in seen:
                raise FormatError(
                    f"{self.name} changes one layer twice, as {seen[module.name]} and as {module.stem}; loaders would "
                    "take the last, so take one of them out"
                )
            seen[module.name] = module.stem


def check_finite(parts: Mapping[str, Tensor], module: LoraModule, name: str) -> None:
    """Refuses a module that no arithmetic can be done with.

    Raises:
        FormatError: a part holds NaN or an infinity; the tensor is named.
    """
    for part, value in parts.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FormatError(
                f"{name}: {module.keys[part]} holds NaN or infinite numbers, so the LoRA is broken; "
                "use another checkpoint of its training"
            )


def iter_parts(
    file: LoraFile, modules: Iterable[LoraModule] | None = None
) -> Iterator[tuple[LoraModule, dict[str, Tensor]]]:
    """Every module with its tensors, checked to be finite, one in memory at a time.

    Raises:
        FormatError: a tensor is not finite.
    """
    for module in file.modules if modules is None else modules:
        parts = file.parts(module)
        check_finite(parts, module, file.name)
        yield module, parts


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
