"""Tags that bleed into each other because they share a word, and names that would not.

A LoRA trainer renamed ``aiming at viewer`` to ``aav`` because it bled into ``aiming``; elsewhere ``gigantic breasts``
made everything gigantic. A shared last word (``skirt``, ``plaid skirt``) is what the two have in common anyway and is
left to implications; looked for are shared beginnings, one adjective before different things, and triggers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.params import Params, param
from .normal import KAOMOJI, normals
from .triggers import class_triggers, words_of
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

BEGINNING, ADJECTIVE, TRIGGER = "same beginning", "same adjective", "word of a trigger"
_SMALL_WORDS = frozenset(
    ["a", "an", "and", "at", "between", "by", "for", "from", "in", "into", "no", "not", "of", "off", "on", "one", "own"]
    + ["over", "the", "to", "under", "up", "with", "without"]
)
_MAX_SHOWN_TAGS = 8


@dataclass(frozen=True, kw_only=True)
class BleedingParams(Params):
    """Which tags are compared."""

    trigger: str = param("", doc="The trigger word, or several separated by commas. Empty: found as the doctor does.")
    min_count: int = param(
        3,
        doc="Only tags on at least so many pictures are looked at.",
        unit="images",
        minimum=1,
        maximum=100_000,
        step=1,
    )
    max_clusters: int = param(
        40, doc="How many groups of tags are listed, the most frequent first.", minimum=1, maximum=1000, step=1
    )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Tags that share a word.

    Attributes:
        kind: ``same beginning``, ``same adjective`` or ``word of a trigger``.
        word: The word, or the tag that others begin with.
        tags: The tags, most frequent first.
        counts: Pictures that hold each.
        pictures: Pictures that hold any of them.
        together: Share of those that hold two or more.
    """

    kind: str
    word: str
    tags: tuple[str, ...]
    counts: tuple[int, ...]
    pictures: int
    together: float


@dataclass(frozen=True, kw_only=True)
class Bleeding:
    """The clusters of a data set and names for the tags in them.

    Attributes:
        clusters: Triggers first, then shared beginnings, then adjectives; each kind by pictures.
        renames: (tag, proposed name) for all but the most frequent tag of each cluster.
        left_out: Clusters beyond the number asked for.
    """

    clusters: tuple[Cluster, ...]
    renames: tuple[tuple[str, str], ...]
    left_out: int = 0

    def text(self) -> str:
        """The clusters as text, with the proposed names."""
        if not self.clusters:
            return "Bleeding: no tags share a beginning, an adjective or a word of a trigger"
        lines = [f"Bleeding: {counted(len(self.clusters), 'group')} of tags that share a word"]
        names = dict(self.renames)
        for cluster in self.clusters:
            lines += [
                "",
                f"{printable(cluster.word)!r} ({cluster.kind}): {counted(cluster.pictures, 'picture')}, two or more "
                f"together on {cluster.together:.0%}",
            ]
            for tag, count in list(zip(cluster.tags, cluster.counts, strict=True))[:_MAX_SHOWN_TAGS]:
                name = f"  -> {names[tag]}" if tag in names else ""
                lines.append(f"  {count:>7}  {printable(tag)}{name}")
            if len(cluster.tags) > _MAX_SHOWN_TAGS:
                lines.append(f"           and {len(cluster.tags) - _MAX_SHOWN_TAGS} more")
        if self.left_out:
            lines += ["", f"and {counted(self.left_out, 'smaller group')}; raise max_clusters to see them"]
        lines += ["", "Rename a tag only if it bleeds in pictures, and prompt with its new name afterwards."]
        return "\n".join(lines)

    def rename_list(self) -> str:
        """The proposed names, one ``old,new`` per line, as 'Rename Tags' reads them."""
        return "".join(f"{old},{new}\n" for old, new in self.renames if "," not in old)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "clusters": [
                {
                    "kind": cluster.kind,
                    "word": cluster.word,
                    "tags": list(cluster.tags),
                    "counts": list(cluster.counts),
                    "pictures": cluster.pictures,
                    "together": cluster.together,
                }
                for cluster in self.clusters
            ],
            "renames": [list(pair) for pair in self.renames],
        }


def find_bleeding(dataset: "Dataset", params: BleedingParams) -> Bleeding:
    """Looks for tags that share a word.

    Args:
        dataset: The table.
        params: Which tags are compared.
    """
    column = dataset.tags.deduplicated()
    counts = column.counts()
    spelled = normals(column.vocabulary)
    ids = np.flatnonzero(counts >= params.min_count).tolist()
    ids = [tag for tag in ids if spelled[tag] not in KAOMOJI]
    triggers = [word for entry in class_triggers(dataset, params.trigger) for word in entry.words]
    groups = [
        *_trigger_groups(ids, spelled, triggers),
        *_beginning_groups(ids, spelled),
        *_adjective_groups(ids, spelled),
    ]
    merged = _merged_spellings(groups, spelled, counts)
    order = {TRIGGER: 0, BEGINNING: 1, ADJECTIVE: 2}
    merged.sort(key=lambda group: (order[group[0]], -sum(int(counts[tag]) for tag in group[2]), group[1]))
    shown = merged[: params.max_clusters]
    sharing = _sharing(dataset, [group[2] for group in shown])
    clusters = tuple(
        Cluster(
            kind=kind,
            word=word,
            tags=tuple(column.vocabulary[tag] for tag in tags),
            counts=tuple(int(counts[tag]) for tag in tags),
            pictures=pictures,
            together=both / max(1, pictures),
        )
        for (kind, word, tags), (pictures, both) in zip(shown, sharing, strict=True)
    )
    return Bleeding(
        clusters=clusters,
        renames=_proposals(clusters, set(spelled), set(normals(tuple(triggers)))),
        left_out=len(merged) - len(shown),
    )


Group = tuple[str, str, list[int]]


def _trigger_groups(ids: Sequence[int], spelled: Sequence[str], triggers: Iterable[str]) -> list[Group]:
    by_word: dict[str, list[int]] = {}
    for tag in ids:
        for word in set(_words(spelled[tag])):
            by_word.setdefault(word, []).append(tag)
    groups = []
    for trigger in triggers:
        own = " ".join(_words(trigger.casefold()))
        for word in sorted(words_of(trigger) - _SMALL_WORDS):
            others = [tag for tag in by_word.get(word, ()) if " ".join(_words(spelled[tag])) != own]
            mine = [tag for tag in ids if " ".join(_words(spelled[tag])) == own]
            if others:
                groups.append((TRIGGER, word, [*mine, *others]))
    return groups


def _beginning_groups(ids: Sequence[int], spelled: Sequence[str]) -> list[Group]:
    """Tags that begin with a whole other tag: ``aiming``, ``aiming at viewer``."""
    known = {spelled[tag]: tag for tag in ids}
    found: dict[str, list[int]] = {}
    for tag in ids:
        words = spelled[tag].split()
        for length in range(1, len(words)):
            beginning = " ".join(words[:length])
            if beginning in known and beginning not in _SMALL_WORDS:
                found.setdefault(beginning, [known[beginning]]).append(tag)
    return [(BEGINNING, word, tags) for word, tags in found.items()]


def _adjective_groups(ids: Sequence[int], spelled: Sequence[str]) -> list[Group]:
    """Tags of two words or more with the same first word before different things."""
    found: dict[str, list[int]] = {}
    for tag in ids:
        words = _words(spelled[tag])
        numbered = any(word.isdigit() for word in (words[0], words[-1])) if words else True
        if len(words) >= 2 and words[0] not in _SMALL_WORDS and not numbered and len(words[0]) > 1:
            found.setdefault(words[0], []).append(tag)
    known = {spelled[tag] for tag in ids}
    return [
        (ADJECTIVE, word, tags)
        for word, tags in found.items()
        if word not in known and len({_words(spelled[tag])[-1] for tag in tags}) > 1
    ]


def _merged_spellings(groups: Iterable[Group], spelled: Sequence[str], counts: NDArray[np.int64]) -> list[Group]:
    """Groups with one id per spelling (the most frequent), most frequent first; those of one tag go."""
    result = []
    for kind, word, tags in groups:
        best: dict[str, int] = {}
        for tag in sorted(tags, key=lambda number: (-int(counts[number]), number)):
            best.setdefault(spelled[tag], tag)
        if len(best) > 1 or (kind == TRIGGER and best):
            result.append((kind, word, list(best.values())))
    return result


def _sharing(dataset: "Dataset", groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Per group the pictures that hold any of its tags, and those that hold two or more."""
    column = dataset.tags
    rows = column.row_of_occurrence
    found = []
    for tags in groups:
        wanted = np.zeros(len(column.vocabulary), dtype=bool)
        wanted[list(tags)] = True
        per_row = np.bincount(rows[wanted[column.ids]], minlength=len(column))
        found.append((int((per_row > 0).sum()), int((per_row > 1).sum())))
    return found


def _proposals(clusters: Iterable[Cluster], known: set[str], triggers: set[str]) -> tuple[tuple[str, str], ...]:
    """Names for all but the most frequent tag of each cluster; triggers keep theirs."""
    taken = set(known)
    renames: dict[str, str] = {}
    for cluster in clusters:
        first = 0 if cluster.kind == TRIGGER else 1
        for tag in cluster.tags[first:]:
            (form,) = normals((tag,))
            if tag not in renames and form not in triggers and form != cluster.word:
                renames[tag] = _short_name(form, taken)
                taken.add(renames[tag])
    return tuple(renames.items())


def _short_name(form: str, taken: set[str]) -> str:
    """Initials of three words and more (``aiming at viewer``: aav), else first letters; never a known tag."""
    words = _words(form) or [form]
    for letters in range(1 if len(words) >= 3 else 2, 6):
        name = "".join(word[:letters] for word in words)
        if len(name) >= 3 and name not in taken and name not in words:
            return name
    number = 2
    base = "".join(word[:2] for word in words)
    while f"{base}{number}" in taken:
        number += 1
    return f"{base}{number}"


def _words(form: str) -> list[str]:
    """The words of a tag in normal form, without brackets and other signs at their ends."""
    return [word for part in form.split() if (word := part.strip("()[]{}:;!?.\"'"))]
