"""Beginning with the values of a LoRA file: its modules, ranks and alphas decide those of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.params import Choice
from ..core.tensors import read_header, read_tensors
from ..families._spec import Components, Family, Target
from ..networks._apply import split_file
from ..networks._attach import ModuleSettings
from ..networks._spec import Network, get_network, network_of_parts


@dataclass(frozen=True, kw_only=True)
class StartLora:
    """A LoRA file to begin with.

    Attributes:
        path: the file.
        name: its name below the loras folder, for messages.
        sha256: of the whole file, hexadecimal.
    """

    path: Path
    name: str
    sha256: str


def check_start(start: StartLora, network: Network) -> None:
    """Refuses a file of another network, by its header.

    Raises:
        InputError: the file's modules are of another network.
        FormatError: the file is no LoRA.
    """
    for parts in _modules(start.path).values():
        if not _fits(network, parts):
            found = network_of_parts(parts)
            raise InputError(
                f"{start.name} is a {found.title} and the run's network is {network.title}: wire the network "
                f"{found.title}, or leave the network open to take the file's."
            )


def choice_of_file(path: Path) -> Choice:
    """The network a LoRA file was made with, its rank the most frequent of its modules.

    Raises:
        FormatError: the file is no LoRA of a known network.
    """
    modules = _modules(path)
    names = [network_of_parts(parts, stem=stem).name for stem, parts in modules.items()]
    network = get_network(max(dict.fromkeys(names), key=names.count))
    if _said_algo(path) == "ia3" and all(_fits(get_network("ia3"), parts) for parts in modules.values()):
        network = get_network("ia3")  # whose files are LoRAs of zeros with dora_scale
    ranks = [network.rank_of(parts) for parts in modules.values() if network.knows(parts)]
    known = [rank for rank in ranks if rank is not None and rank <= 1024]
    fields = {parameter.name for parameter in network.params.parameters()}
    given = {"rank": max(dict.fromkeys(known), key=known.count)} if known and "rank" in fields else {}
    return Choice(kind="network", name=network.name, params=network.params(**given))


def started(
    start: StartLora,
    family: Family,
    components: Components,
    chosen: Sequence[tuple[Target, ModuleSettings]],
) -> list[tuple[Target, ModuleSettings]]:
    """The chosen modules that the file has, each beginning with the file's values.

    Raises:
        InputError: the file has modules the base lacks, or none of the chosen ones.
        FormatError: the file cannot be read.
    """
    files = split_file(read_tensors(start.path))
    modules = family.modules_by_stem(components)
    strangers = [stem for stem in files if stem not in modules and not _of_absent_part(stem, components)]
    if strangers:
        raise InputError(
            f"{len(strangers)} modules of {start.name} are none of the base model's, such as {strangers[0]}: it was "
            f"trained for another architecture; begin with a LoRA for {family.title}."
        )
    by_module = {id(modules[stem]): parts for stem, parts in files.items() if stem in modules}
    found = [
        (target, replace(settings, start=by_module[id(target.module)]))
        for target, settings in chosen
        if id(target.module) in by_module
    ]
    if not found:
        raise InputError(
            f"{start.name} has none of the {len(chosen)} modules that the targets choose; choose blocks that it has."
        )
    return found


def _of_absent_part(stem: str, components: Components) -> bool:
    """Whether a module is of a part that this run does not load."""
    text = stem.startswith(("lora_te", "text_encoder"))
    return not components.text_encoders if text else components.unet is None


def _said_algo(path: Path) -> str:
    """The algorithm a file's metadata names, "" where it names none."""
    try:
        said = json.loads(read_header(path).metadata.get("ss_network_args", "{}"))
    except ValueError:  # a remark of another tool; the parts tell the network then
        return ""
    return str(said.get("algo", "")) if isinstance(said, dict) else ""


def _modules(path: Path) -> dict[str, dict[str, Any]]:
    """Stem -> part -> something with a shape, from the header alone."""
    shapes: Mapping[str, Any] = {name: _Shape(shape) for name, shape in read_header(path).shapes.items()}
    return split_file(shapes)


def _fits(network: Network, parts: Mapping[str, Any]) -> bool:
    return network.knows(parts) or (network.name == "ia3" and {"dora_scale", "lora_up.weight"} <= parts.keys())


@dataclass(frozen=True)
class _Shape:
    """Stands in for a tensor where only its shape is asked."""

    shape: tuple[int, ...]
