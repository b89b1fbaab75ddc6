"""What a concept preset is: lists of tags with the reason why they go, and how the caption begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from ...core.discovery import discover
from ...core.errors import unknown_name

ABSTRACT = (
    "highres, absurdres, lowres, incredibly absurdres, wallpaper, jpeg artifacts, virtual youtuber, official art, "
    "game cg, commentary, commentary request, english commentary, mixed-language commentary, translated, "
    "translation request, partially translated, bad id, bad pixiv id, bad twitter id, md5 mismatch, source request, "
    "revision, third-party edit, paid reward available, commission, skeb commission, redrawn, derivative work, "
    "animated, video, has audio, game screenshot, anime screenshot, fake screenshot, key visual, parody, crossover, "
    "category:meta"
)
"""Tags that say nothing that can be seen in the picture (``virtual youtuber``, ``highres``)."""

NAMES = "category:character, category:copyright"
"""Names of characters and of the works they are from."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Tags that go, with the reason.

    Attributes:
        reason: Why, in words for the proposal's table.
        entries: The tags, as a blacklist takes them.
    """

    reason: str
    entries: str


@dataclass(frozen=True, kw_only=True)
class ConceptPreset:
    """The export ``PRESET`` of a file in this folder.

    Attributes:
        name: Key, the same as the file's name.
        title: For menus.
        summary: What it does, one sentence.
        source: Where it comes from.
        first: What kind of tag the caption begins with.
        trait_mode: Mode of the step ``prune_traits``.
        removals: Lists of tags that go.
        families: Names of one thing: of a family that holds the trigger's own noun, all other names go.
        keep: Entries that stay whatever the lists say.
        shuffle: Whether training should shuffle the tags.
        keep_tokens: Tags at the front that should not be shuffled.
        advice: What a person should look at.
    """

    name: str
    title: str
    summary: str
    source: str
    first: str
    trait_mode: str = "none"
    removals: tuple[Removal, ...] = ()
    families: tuple[str, ...] = ()
    keep: str = ""
    shuffle: bool = True
    keep_tokens: int = 1
    advice: tuple[str, ...] = ()


@cache
def presets() -> Mapping[str, ConceptPreset]:
    """Every preset by name; the folder is looked through once."""
    return MappingProxyType(discover(__package__, "PRESET"))


def preset_names() -> list[str]:
    """Names of the presets."""
    return list(presets())


def find_preset(name: str) -> ConceptPreset:
    """A preset by its name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    found = presets()
    if name not in found:
        raise unknown_name("concept preset", name, found)
    return found[name]
