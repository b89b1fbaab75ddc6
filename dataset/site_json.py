"""Metadata files of picture sites: danbooru, e621, gallery-dl, waifuc, and the JSON sidecars that this pack writes.

The same letter and the same number mean different things on different sites: a danbooru ``s`` is sensitive and an e621
``s`` is safe; category 5 is meta there and species here. So the site is found out first.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .columns import CATEGORIES
from .sidecars import BadCaption, decoded_text
from .table import RATINGS

OWN_MARK = "lora-atelier"
MAX_JSON_BYTES = 4 * 1024 * 1024
"""A post's metadata has some kilobytes; a larger file is something else."""

CATEGORY_IDS: Mapping[str, Mapping[int, str]] = {
    "danbooru": {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "meta"},
    "e621": {
        0: "general",
        1: "artist",
        2: "contributor",
        3: "copyright",
        4: "character",
        5: "species",
        6: "invalid",
        7: "meta",
        8: "lore",
    },
}
"""Names of the sites' category numbers."""

_OUR_CATEGORY = {
    **{name: name for name in CATEGORIES if name},
    "contributor": "meta",
    "invalid": "meta",
    "lore": "meta",
    "metadata": "meta",
    "deprecated": "meta",
    "faults": "meta",
    "year": "meta",
    "model": "meta",
    "photo_set": "meta",
    "circle": "artist",
    "studio": "artist",
    "style": "general",
    "series": "copyright",
}
"""Categories of the sites by ours; whatever is not about the picture's content is meta."""

_ORDER = ("trigger", "character", "species", "copyright", "artist", "general", "", "quality", "meta", "rating")
_E621_SITES = frozenset({"e621", "e926", "e6ai", "e621ng"})
_DANBOORU_SITES = frozenset({"danbooru", "aibooru", "atfbooru", "booruvar", "safebooru_donmai"})
_RATING_WORDS = {
    "g": "general",
    "q": "questionable",
    "e": "explicit",
    **{word: word for word in RATINGS if word},
    "nsfw": "explicit",
}


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """What a metadata file says about one picture.

    Attributes:
        form: What kind of file it was, in words.
        tags: Its tags by category: who first, then what, then about the file.
        categories: Place in ``CATEGORIES`` of each.
        scores: Confidence of each (nan for none); empty when the file has none.
        score: The post's score; nan when it has none.
        favourites: How many have marked it; -1 when that is not said.
        rating: Place in ``RATINGS``.
        is_own: Whether this pack wrote it: a caption that was saved, not what a site says.
    """

    form: str
    tags: tuple[str, ...]
    categories: tuple[int, ...]
    scores: tuple[float, ...] = ()
    score: float = math.nan
    favourites: int = -1
    rating: int = 0
    is_own: bool = False


def read_site_json(path: Path | str) -> SiteRecord | None:
    """Reads a metadata file; None when it is JSON of some other kind.

    Raises:
        BadCaption: Not readable, too large, or not JSON.
    """
    text = decoded_text(path, MAX_JSON_BYTES, "is larger than 4 MiB; the metadata of one picture is smaller")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadCaption(path, f"is not valid JSON (line {error.lineno}: {error.msg}); repair or delete it") from error
    except RecursionError as error:
        raise BadCaption(path, "is nested too deeply for a picture's metadata; delete it") from error
    except ValueError as error:  # a number of thousands of digits
        raise BadCaption(path, f"is not usable JSON ({error}); repair or delete it") from error
    return record_of(data)


def record_of(data: Any) -> SiteRecord | None:
    """The record in parsed JSON; None when it holds no tags."""
    data = _unwrapped(data)
    if not isinstance(data, dict):
        return None
    site = _site_of(data)
    found, scores = _tags_of(data, site)
    is_own = data.get("written_by") == OWN_MARK
    if not found and not is_own:
        return None
    ordered = sorted(found.items(), key=lambda item: _ORDER.index(item[1]))
    if is_own and isinstance(data.get("caption"), str):
        places = {_clean(tag): place for place, tag in enumerate(_names(data["caption"], is_caption=True))}
        ordered.sort(key=lambda item: places.get(item[0], len(places)))
    return SiteRecord(
        form=_form_of(data, site),
        tags=tuple(tag for tag, _ in ordered),
        categories=tuple(CATEGORIES.index(category) for _, category in ordered),
        scores=tuple(scores.get(tag, math.nan) for tag, _ in ordered) if scores else (),
        score=_number(_total(data.get("score"))),
        favourites=_favourites(data),
        rating=rating_of(data.get("rating"), site),
        is_own=is_own,
    )


def rating_of(value: Any, site: str) -> int:
    """Place in ``RATINGS`` of a rating letter or word; 0 when it is none.

    Args:
        value: What the file says.
        site: ``danbooru``, ``e621`` or another: ``s`` is sensitive on the first and safe on all others.
    """
    if isinstance(value, dict):  # scores by rating, as taggers give them
        numbers = {str(name): _number(score) for name, score in value.items()}
        known = {name: score for name, score in numbers.items() if not math.isnan(score)}
        value = max(known, key=lambda name: known[name]) if known else ""
    word = str(value).strip().lower() if isinstance(value, str) else ""
    word = word.removeprefix("rating:")
    if word == "s":
        word = "sensitive" if site == "danbooru" else "safe"
    word = _RATING_WORDS.get(word, "")
    return RATINGS.index(word)


def category_number(name: str) -> int:
    """Place in ``CATEGORIES`` of a site's category name; 0 when it is not known."""
    return CATEGORIES.index(_OUR_CATEGORY.get(name.lower(), ""))


def _unwrapped(data: Any) -> Any:
    """The post itself: out of an answer of e621 (``post``, ``posts``) or a list of one."""
    for _ in range(3):
        if isinstance(data, list) and len(data) == 1:
            data = data[0]
        elif isinstance(data, dict) and isinstance(data.get("post"), dict):
            data = data["post"]
        elif isinstance(data, dict) and isinstance(data.get("posts"), list) and len(data["posts"]) == 1:
            data = data["posts"][0]
    return data


def _site_of(data: Mapping[str, Any]) -> str:
    """``danbooru``, ``e621``, or the name the file gives itself; empty when nothing tells."""
    named = str(data.get("category", "")).lower() if isinstance(data.get("category"), str) else ""
    if named in _E621_SITES:
        return "e621"
    if named in _DANBOORU_SITES:
        return "danbooru"
    if named:
        return named
    if any(key.startswith("tag_string") for key in data):
        return "danbooru"
    tags = data.get("tags")
    if isinstance(data.get("score"), dict) or (isinstance(tags, dict) and {"species", "lore", "invalid"} & tags.keys()):
        return "e621"
    urls = " ".join(str(data.get(key, "")) for key in ("file_url", "url", "page_url", "large_file_url"))
    if "e621.net" in urls or "e926.net" in urls:
        return "e621"
    return "danbooru" if "donmai.us" in urls else ""


def _form_of(data: Mapping[str, Any], site: str) -> str:
    if data.get("written_by") == OWN_MARK:
        return "JSON of this pack"
    if isinstance(data.get("tags"), dict) and all(isinstance(value, (int, float)) for value in data["tags"].values()):
        return "waifuc JSON"
    if isinstance(data.get("category"), str) and site:
        return f"gallery-dl JSON of {site}"
    return f"{site} JSON" if site else "JSON with tags"


def _tags_of(data: Mapping[str, Any], site: str) -> tuple[dict[str, str], dict[str, float]]:
    """Category (a name of ours) of every tag, and scores where the file gives them."""
    found: dict[str, str] = {}
    scores: dict[str, float] = {}

    def add(category: str, names: Iterable[str]) -> None:
        for name in names:
            if name := _clean(name):
                found.setdefault(name, _OUR_CATEGORY.get(category.lower(), ""))

    for prefix in ("tags_", "tag_string_"):
        for key, value in data.items():
            if key.startswith(prefix):
                add(key.removeprefix(prefix), _names(value))
    tags = data.get("tags")
    if isinstance(tags, dict):
        for name, value in tags.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                add("", [name])
                scores[_clean(name)] = _number(value)
            else:
                add(name, _names(value))
    elif isinstance(tags, list) and any(isinstance(entry, dict) for entry in tags):
        for entry in tags:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                add(_category_name(entry.get("category", entry.get("type")), site), [entry["name"]])
    elif not found:
        add("", _names(tags if tags is not None else data.get("tag_string")))
    caption = data.get("caption")
    if isinstance(caption, str) and not found:
        add("", _names(caption, is_caption=True))
    given = data.get("scores")
    if isinstance(given, dict):
        scores.update({str(name): _number(value) for name, value in given.items() if name in found})
    return found, scores


def _category_name(value: Any, site: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return CATEGORY_IDS.get(site, {}).get(value, "")
    return value if isinstance(value, str) else ""


def _names(value: Any, *, is_caption: bool = False) -> list[str]:
    if isinstance(value, str):
        parts = value.split(",") if "," in value or is_caption else value.split()
    elif isinstance(value, list):
        parts = [part for part in value if isinstance(part, str)]
    else:
        return []
    return parts


def _clean(tag: str) -> str:
    """A tag in one line and in valid Unicode (JSON can hold half a character)."""
    return " ".join(tag.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())


def _total(value: Any) -> Any:
    return value.get("total") if isinstance(value, dict) else value


def _favourites(data: Mapping[str, Any]) -> int:
    for key in ("fav_count", "favorite_count", "favorites"):
        number = _number(data.get(key))
        if not math.isnan(number):
            return min(max(int(number), -1), 2**31 - 1)
    return -1


def _number(value: Any) -> float:
    """A finite number out of JSON, also one written as text; nan for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
