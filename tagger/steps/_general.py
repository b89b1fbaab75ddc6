"""More general tags by whole last words: ``white shirt`` is a ``shirt``, ``ponytail`` is no ``tail``."""

from ._words import words

TURNING_WORDS = words(
    """no without fake unworn missing implied imaginary invisible absent removed former toy stuffed plush paper
    cardboard statue non not anti pseudo hot teddy guinea shooting ice sea jelly prairie"""
)
"""First words after which the rest is not the thing itself: no hat, fake tail, teddy bear, hot dog, sea star."""

RELATING_WORDS = words(
    """at on in over between behind under with of to from by against around through and or above below beside near
    across onto into off for as"""
)
"""Words that make the last word a place, not the thing: mole on neck says nothing about a tag neck."""


def last_word_generals(name: str) -> list[str]:
    """The more general tags that a tag (in normal form) implies by its last words, longest first.

    ``white frilled shirt`` gives ``frilled shirt`` and ``shirt``; ``ponytail``, ``no hat``, ``mole on neck`` nothing.
    """
    words = name.split()
    if len(words) < 2 or words[0] in TURNING_WORDS or "(" in name:
        return []
    found = []
    for start in range(1, len(words)):
        if words[start - 1] in RELATING_WORDS or words[start - 1] in TURNING_WORDS:
            break
        rest = words[start:]
        if rest[0] not in RELATING_WORDS and not RELATING_WORDS.intersection(rest):
            found.append(" ".join(rest))
    return found
