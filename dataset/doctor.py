"""The doctor: what is wrong with a data set before hours are spent on it, each finding with what to do about it.

Checks are a table of small functions (``doctor_checks``, ``doctor_captions``, ``doctor_files``); each looks at one
thing and returns one finding or none. Those that need only the table come first, then captions and headers, then, where
asked, decoded pixels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.index import Index
from ..core.params import param
from ..core.progress import Progress, SilentProgress
from .pixels import PixelFacts, examine_pixels
from .tiers import IDEAL_FACTOR, BucketParams, Fits, fit_facts, measure, some_pictures
from .triggers import ClassTriggers, class_triggers
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""error: pictures are lost or training fails; warning: results suffer; note: worth knowing."""
MAX_EXAMPLES = 8
MAX_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class DoctorParams(BucketParams):
    """What the doctor looks at, and at which size the set will be trained."""

    trigger: str = param(
        "",
        doc="The trigger word, or several separated by commas, one of which belongs on every training picture. Empty: "
        "taken from the caption prefix, the folder's name or the first tag.",
    )
    look_at_pixels: bool = param(
        True,
        doc="Decode every picture once for damage, transparency and near-duplicates; remembered, so that only new "
        "pictures are decoded the next time. Off: a look at names, headers and captions only.",
    )
    duplicate_distance: int = param(
        6,
        doc="Two pictures are near-duplicates when their 64-bit perceptual hashes differ in at most so many bits; 0 "
        "finds only equal ones.",
        unit="bits",
        minimum=0,
        maximum=11,
        step=1,
    )
    ideal_factor: float = param(
        IDEAL_FACTOR,
        doc="A picture is ideal when its sides are at least this many times those it is trained at.",
        minimum=1.0,
        maximum=16.0,
        step=0.5,
        advanced=True,
    )
    max_crop_loss: float = param(
        0.15,
        doc="Pictures that lose a larger share to the crop of their bucket are reported.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    warn_repeats: int = param(
        25,
        doc="Folders whose pictures are seen at least so often per epoch are reported: few pictures, seen often, are "
        "learnt by heart.",
        minimum=2,
        maximum=10_000,
        step=1,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        check: Name of the check.
        severity: One of ``SEVERITIES``.
        title: What it is, in a few words.
        files: Number of files concerned.
        advice: What to do.
        details: Further lines, such as shares and reasons.
        examples: Some names.
        rows: Some of the pictures concerned, as places in the data set; groups lie side by side.
        unit: What is counted.
    """

    check: str
    severity: str
    title: str
    files: int
    advice: str
    details: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    unit: str = "file"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of a table of checks: what it looks for, and the function that looks."""

    name: str
    looks_for: str
    run: Callable[["Patient"], Finding | None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor says.

    Attributes:
        pictures: Number of pictures.
        reg_pictures: Those for regularisation among them.
        folders: Number of folders.
        findings: Most severe first.
        facts: Resolution tiers, crop loss and buckets, one line each.
        clean: What was looked for and not found.
        not_done: What was not looked at, with the reason.
    """

    pictures: int
    reg_pictures: int
    folders: int
    findings: tuple[Finding, ...]
    facts: tuple[str, ...]
    clean: tuple[str, ...]
    not_done: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Findings per severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def headline(self) -> str:
        """One line: the size of the set and the number of findings."""
        reg = f" ({self.reg_pictures} for regularisation)" if self.reg_pictures else ""
        found = ", ".join(counted(count, severity) for severity, count in self.counts.items() if count)
        return (
            f"{counted(self.pictures, 'picture')}{reg} in {counted(self.folders, 'folder')}: "
            f"{found or 'nothing to complain about'}"
        )

    def text(self) -> str:
        """A table of the findings, then each with its details and what to do."""
        lines = [f"Data set doctor: {self.headline()}", *(f"  {fact}" for fact in self.facts)]
        if self.findings:
            lines += ["", "severity   files  finding"]
            lines += [f"{entry.severity:<8} {entry.files:>7}  {entry.title}" for entry in self.findings]
        for entry in self.findings:
            lines += ["", f"[{entry.severity}] {entry.title} ({counted(entry.files, entry.unit)})"]
            lines += [f"  {detail}" for detail in entry.details]
            if entry.examples:
                more = " ..." if entry.files > len(entry.examples) else ""
                lines.append(f"  e.g. {', '.join(entry.examples)}{more}")
            lines.append(f"  -> {entry.advice}")
        if self.clean:
            lines += ["", f"Looked for and not found: {', '.join(self.clean)}."]
        lines += [f"Not looked at: {entry}" for entry in self.not_done]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "format": "atelier-doctor-1",
            "pictures": self.pictures,
            "reg_pictures": self.reg_pictures,
            "folders": self.folders,
            "counts": self.counts,
            "findings": [
                {
                    "check": entry.check,
                    "severity": entry.severity,
                    "title": entry.title,
                    "files": entry.files,
                    "unit": entry.unit,
                    "details": list(entry.details),
                    "examples": list(entry.examples),
                    "advice": entry.advice,
                }
                for entry in self.findings
            ],
            "facts": list(self.facts),
            "clean": list(self.clean),
            "not_done": list(self.not_done),
        }


@dataclass(kw_only=True)
class Patient:
    """A data set with what several checks need, found out once and only when asked for."""

    dataset: "Dataset"
    params: DoctorParams
    index: Index | None = None
    progress: Progress = field(default_factory=SilentProgress)
    header_flags: tuple[NDArray[np.uint8], NDArray[np.bool_]] | None = None
    """EXIF orientations and alpha, once a check has read the headers."""

    @cached_property
    def names(self) -> list[str]:
        """Names of all pictures below their folders."""
        return list(self.dataset.names)

    @cached_property
    def is_reg(self) -> NDArray[np.bool_]:
        """Of dtype bool [pictures], whether a picture is for regularisation."""
        return self.dataset.is_reg

    @cached_property
    def fits(self) -> Fits:
        """Buckets, scaling, crop loss and tiers."""
        return measure(self.dataset, self.params.rule(), ideal_factor=self.params.ideal_factor)

    @cached_property
    def triggers(self) -> list[ClassTriggers]:
        """Trigger words per folder."""
        return class_triggers(self.dataset, self.params.trigger)

    @cached_property
    def pixels(self) -> PixelFacts:
        """What decoding tells."""
        return examine_pixels(self.dataset, index=self.index, progress=self.progress)

    def shown(self, row: int) -> str:
        """Name of a picture for a report."""
        return shown_name(self.dataset, row)

    def finding(
        self,
        check: str,
        severity: str,
        title: str,
        rows: Sequence[int] | NDArray[np.int64],
        advice: str,
        *,
        details: Sequence[str] = (),
        files: int | None = None,
    ) -> Finding:
        """A finding about pictures: their number, and the first of them as examples."""
        listed = tuple(int(row) for row in rows[:MAX_ROWS])
        return Finding(
            check=check,
            severity=severity,
            title=title,
            files=len(rows) if files is None else files,
            advice=advice,
            details=tuple(details),
            examples=tuple(self.shown(row) for row in listed[:MAX_EXAMPLES]),
            rows=listed,
        )


def shown_name(dataset: "Dataset", row: int) -> str:
    """Name of a picture in a report: with its folder where there are several."""
    folder, name = dataset.subset_of(row).folder, dataset.names[row]
    return printable(name if folder == dataset.root else f"{folder.name}/{name}")


def examine(
    dataset: "Dataset", params: DoctorParams, *, index: Index | None = None, progress: Progress | None = None
) -> Report:
    """Looks at a data set; nothing is changed.

    Args:
        dataset: The table.
        params: What to look at.
        index: Where headers, hashes and damage are remembered.
        progress: Told per check and, while pictures are decoded, per picture; may cancel. What was found out about
            files until then is kept in the index.

    Raises:
        InputError: The training size does not fit its buckets.
    """
    from .doctor_captions import CAPTION_CHECKS
    from .doctor_checks import TABLE_CHECKS
    from .doctor_files import HEADER_CHECKS, PIXEL_CHECKS

    some_pictures(dataset)
    progress = progress or SilentProgress()
    patient = Patient(dataset=dataset, params=params, index=index, progress=progress)
    checks = [*TABLE_CHECKS, *CAPTION_CHECKS, *HEADER_CHECKS, *(PIXEL_CHECKS if params.look_at_pixels else ())]
    findings, clean = [], []
    for check in checks:
        progress.check()
        progress.status(f"Looking for {check.looks_for}")
        found = check.run(patient)
        if found is None:
            clean.append(check.looks_for)
        else:
            findings.append(found)
    not_done = [] if params.look_at_pixels else [
        f"{check.looks_for} (look_at_pixels is off)" for check in PIXEL_CHECKS
    ]  # fmt: skip
    findings.sort(key=lambda entry: SEVERITIES.index(entry.severity))
    return Report(
        pictures=len(dataset),
        reg_pictures=int(patient.is_reg.sum()),
        folders=len(dataset.subsets),
        findings=tuple(findings),
        facts=fit_facts(dataset, patient.fits, params),
        clean=tuple(clean),
        not_done=tuple(not_done),
    )
