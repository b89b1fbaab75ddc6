"""Resize: every module's change cut to fewer ranks, exactly, from its small core."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ...core.errors import FormatError, InputError
from ...core.progress import Progress, SilentProgress
from ...core.stream import Stop, run_jobs
from .drafts import Draft, Made
from .factors import Change, change_of, weight_shape
from .metadata import resized_metadata
from .modules import LoraFile, LoraModule, check_finite
from .ranks import RankParams, choose_ranks
from .spectrum import Spectrum, cut, spectrum_of


def resize(file: LoraFile, params: RankParams, *, bytes_per_number: int = 2, progress: Progress | None = None) -> Draft:
    """Cuts every module to the ranks that the rule gives it; LoHa and LoKr become LoRA.

    Norms, biases and embeddings are carried along as they are.

    Args:
        file: open.
        params: how many ranks.
        bytes_per_number: of the file that will be written, for the rule 'size'.
        progress: told, and may cancel.

    Raises:
        InputError: the file holds a module that cannot be cut without its base model (DoRA, OFT, (IA)^3).
        FormatError: the file is damaged, or changes nothing.
    """
    refuse_relative(file, "resized")
    matrices = [module for module in file.modules if module.is_matrix]
    spectra = _spectra(file, matrices, progress or SilentProgress())
    if not any(spectrum.values.numel() for spectrum in spectra) and not _has_vectors(file):
        raise FormatError(f"{file.name} changes nothing: all its {len(matrices)} modules are zero.")
    ranks = choose_ranks(spectra, [module.is_spatial for module in matrices], params, bytes_per_number=bytes_per_number)
    made = _cut_all(file, matrices, spectra, ranks, progress or SilentProgress())
    zeros = [module for module, spectrum in zip(matrices, spectra, strict=True) if not spectrum.values.numel()]
    unheard = sum(rank == 0 for rank in ranks) - len(zeros)
    notes = [f"{len(zeros)} modules change nothing and are left out, such as {zeros[0].stem}."] if zeros else []
    if unheard:
        notes.append(f"{unheard} modules got no rank from the common budget and are left out.")
    others = sorted({module.algorithm for module in matrices} - {"lora"})
    if others:
        notes.append(f"Written as LoRA; the file had {', '.join(others)} modules.")
    return Draft(
        family=file.family,
        modules=tuple(made[module.name] for module in file.modules if module.name in made),
        metadata=resized_metadata(file.metadata, list(made.values())),
        others={key: file.tensor(key) for key in file.other_keys},
        notes=tuple(notes),
    )


def refuse_relative(file: LoraFile, verb: str) -> None:
    """Refuses a file some of whose changes depend on the base model.

    Raises:
        InputError: it names the algorithm and what to do.
    """
    relative = [module for module in file.modules if module.relative]
    if relative:
        kind = "DoRA" if relative[0].is_dora else relative[0].algorithm
        raise InputError(
            f"{file.name} holds {len(relative)} modules of {kind}, whose change depends on the base model and cannot "
            f"be {verb} without it; make a plain LoRA of it first with 'Convert LoRA' and its base model."
        )


def _has_vectors(file: LoraFile) -> bool:
    return any(not module.is_matrix for module in file.modules)


def changes(file: LoraFile, module: LoraModule) -> Change:
    """A module's change out of its file, checked to be finite."""
    parts = file.parts(module)
    check_finite(parts, module, file.name)
    return change_of(module, parts)


def _spectra(file: LoraFile, modules: Sequence[LoraModule], progress: Progress) -> list[Spectrum]:
    found: dict[str, Spectrum] = {}
    lock = threading.Lock()

    def look(module: LoraModule, stop: Stop) -> None:
        spectrum = spectrum_of(changes(file, module))
        with lock:
            found[module.name] = spectrum

    run_jobs(modules, look, progress=progress, text=f"singular values of {file.name}")
    return [found[module.name] for module in modules]


def _cut_all(
    file: LoraFile,
    matrices: Sequence[LoraModule],
    spectra: Sequence[Spectrum],
    ranks: Sequence[int],
    progress: Progress,
) -> dict[str, Made]:
    wanted = {
        module.name: (spectrum, rank) for module, spectrum, rank in zip(matrices, spectra, ranks, strict=True) if rank
    }
    made: dict[str, Made] = {}
    lock = threading.Lock()

    def work(module: LoraModule, stop: Stop) -> None:
        result = _cut_one(file, module, *wanted.get(module.name, (None, 0)))
        if result is not None:
            with lock:
                made[module.name] = result

    run_jobs(file.modules, work, progress=progress, text=f"cutting {file.name}")
    return made


def _cut_one(file: LoraFile, module: LoraModule, spectrum: Spectrum | None, rank: int) -> Made | None:
    if not module.is_matrix:
        parts = file.parts(module)
        check_finite(parts, module, file.name)
        return Made(place=module.place, block=module.block, parts=parts)
    bias = {} if module.bias_part is None else {module.bias_part: file.parts(module)[module.bias_part]}
    if spectrum is None:
        return Made(place=module.place, block=module.block, parts=bias) if bias else None
    change = changes(file, module)
    return Made(
        place=module.place,
        block=module.block,
        factors=cut(change, rank, shape=weight_shape(change, module)),
        scale=module.scale if module.algorithm == "lora" and module.scale > 0.0 else 1.0,
        parts=bias,
        energy=spectrum.energy,
        lost=spectrum.lost(rank),
        rank_before=module.rank,
    )
