"""What a save, a restore or an export did, for a person."""

from collections import Counter
from dataclasses import dataclass, field

from .table import Skipped

_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """What a save or a restore did.

    Attributes:
        title: What was done, in words.
        counts: Number of files by what happened to them.
        refused: Files that were left alone, with the reason.
        backup: Name of the backup that was made; empty for none.
        notes: What else a person should know.
    """

    title: str
    counts: dict[str, int]
    refused: tuple[Skipped, ...] = ()
    backup: str = ""
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Several lines for a person."""
        lines = [self.title]
        lines += [f"  {name}: {count}" for name, count in self.counts.items() if count]
        if self.backup:
            lines.append(f"  Backup of what was there before: {self.backup}")
        lines += [f"  {note}" for note in self.notes]
        if self.refused:
            lines.append(f"  Left alone ({len(self.refused)}):")
            lines += [f"    {entry}" for entry in self.refused[:_MAX_LISTED]]
            rest = Counter(entry.reason for entry in self.refused[_MAX_LISTED:])
            if rest:
                lines.append("    and " + "; ".join(f"{count} x {reason}" for reason, count in rest.most_common(5)))
        return "\n".join(lines)


@dataclass
class Work:
    """Counts while captions are written."""

    created: int = 0
    replaced: int = 0
    unchanged: int = 0
    without: int = 0
    with_commas: int = 0
    behind_txt: int = 0
    refused: list[Skipped] = field(default_factory=list)

    def refuse(self, path: str, reason: str) -> None:
        """Lists a file that is left alone."""
        self.refused.append(Skipped(path=path, reason=reason))
