"""Tag recall: which of the tags that a prompt asks for does the judge see in the picture."""

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass

from ._spec import Metric

_LORA_TAG = re.compile(r"<[^<>]*>")
_WEIGHT = re.compile(r":\s*[+-]?\d*\.?\d+\s*$")


@dataclass(frozen=True, kw_only=True)
class TagRecall:
    """Result for one picture.

    Attributes:
        asked: Tags of the prompt that the judge knows.
        missed: Those of them it does not see.
    """

    asked: frozenset[str]
    missed: frozenset[str]

    @property
    def recall(self) -> float | None:
        """Share of the asked tags that are seen; None when nothing was asked that the judge knows."""
        return None if not self.asked else 1.0 - len(self.missed) / len(self.asked)


def normalise(tag: str) -> str:
    """Return a tag in the form in which tags are compared: lower case, spaces, without escapes and brackets."""
    text = tag.replace("\\(", "\x01").replace("\\)", "\x02").strip()
    while text and text[0] in "([" and text[-1] in ")]":
        text = text[1:-1].strip()
        text = _WEIGHT.sub("", text)
    text = text.replace("\x01", "(").replace("\x02", ")").replace("_", " ")
    return " ".join(text.lower().split())


def prompt_tags(prompt: str) -> list[str]:
    """Return the tags of a prompt, normalised: split at commas, LoRA tags and attention weights removed."""
    pieces = _LORA_TAG.sub(" ", prompt).replace("\n", ",").split(",")
    return [tag for tag in map(normalise, pieces) if tag]


def tag_recall(prompt: str, seen: Iterable[str], vocabulary: Set[str]) -> TagRecall:
    """Compare the tags asked for with the tags seen.

    Args:
        prompt: Comma-separated tags.
        seen: Tags the judge sees.
        vocabulary: Tags the judge knows, normalised; others cannot be judged and do not count.
    """
    asked = frozenset(prompt_tags(prompt)) & frozenset(vocabulary)
    return TagRecall(asked=asked, missed=asked - frozenset(map(normalise, seen)))


METRIC = Metric(
    name="Tag recall",
    summary="Share of the prompt's tags that a tagger sees in the picture.",
    source="Prompt following on booru captions as counting the cells of a grid that do not match their prompt; "
    "deepghs sdeval's tag-based controllability.",
    measure=tag_recall,
)
