"""What a tag is about, told by its words: hair and eyes, things worn, clothes, pose, background.

Word lists after the trait rule of imgutils 0.19 and the difficulty lists of anime_screenshot_pipeline, split in two:
``body`` cannot be taken off and should stick to a character's trigger, ``worn`` can and should be prompted for.
A tag belongs to a class by its last word (singular or plural), never by a part of a word.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...dataset.normal import normals
from ._people import is_people_tag
from ._words import phrases, words

BODY_EASY = words(
    """eye hair skin bun bangs sidelock twintail braid afro ahoge drill bald dreadlock ponytail updo beard mustache
    goatee stubble sideburn eyebrow eyelash pupil sclera heterochromia intake mohawk pompadour undercut forelock bob
    tanline"""
)
"""Last words of the traits that a model learns soonest: hair, eyes, skin."""
BODY_EASY_ENDS = ("side up", "hime cut", "bob cut", "pixie cut", "bowl cut", "buzz cut", "over one eye", "hair flaps")
BODY_HARD = words(
    """fang mark freckle elf ear horn fur halo wing tail mole scar breast lip antler gill fin hoof claw snout muzzle
    mane abs muscle girl boy female male"""
)
"""Last words of the traits that are learnt later, or that make a kind of being."""
BODY_HARD_ENDS = ("ear fluff", "animal ears", "pointy ears", "widow's peak")
BODY_STARTS = ("hair over", "hair between", "facial", "dark skinned", "dark-skinned", "scar")
WORN = words(
    """ornament hairband bow eyewear headwear ribbon crown tiara cap hat hairclip hairpin earring glasses beret
    headdress headgear eyepatch headphone scrunchie headband tassel goggles monocle veil mask hairpods"""
)
"""Last words of things on head and face that can be taken off."""
OUTFIT = words(
    """shirt blouse skirt miniskirt dress hoodie hood jacket coat sweater cardigan vest uniform serafuku kimono yukata
    swimsuit bikini leotard bodysuit pants shorts jeans bloomers buruma leggings pantyhose thighhigh kneehigh sock
    stocking shoe boot sandal loafer heel sneaker glove mitten sleeve collar choker necktie bowtie scarf cape capelet
    cloak robe armor gauntlet apron belt underwear bra panties lingerie clothes clothing outfit costume suit bag
    backpack necklace bracelet ring jewelry brooch plaid frill lace zipper button neckerchief sash obi geta zouri
    footwear legwear neckwear wear shawl poncho overalls suspenders garter cuff wristband armband badge"""
)
EXPRESSION = words("smile blush mouth tongue tears frown grin smirk pout expression sweatdrop wink teeth")
POSE = words(
    """sitting standing lying kneeling squatting walking running jumping leaning stretching sleeping holding wariza
    seiza crossed up down out arm hand leg knee foot feet finger pose salute stance spread back viewer away"""
)
POSE_STARTS = ("looking", "holding", "hand", "hands", "arm", "arms", "from", "facing", "head", "leaning", "standing",
               "sitting", "lying", "pointing", "reaching", "crossed", "spread")  # fmt: skip
BACKGROUND = words(
    """background indoors outdoors sky cloud tree grass forest water ocean beach sea sand mountain room bedroom
    bathroom kitchen classroom window door wall floor building house city street road night sunset day moon star sun
    scenery landscape field flower petal snow rain bed couch chair table desk shelf curtain fence bench stairs ruins
    castle bridge river lake island"""
)

NOT_A_TRAIT = phrases(
    """closed eyes, half-closed eyes, empty eyes, rolling eyes, averted eyes, averting eyes, covered eyes, glowing eyes
    upturned eyes, wide eyes, crazy eyes, bags under eyes, parted lips, puckered lips, pursed lips, licking lips
    pubic hair, wet hair, messy hair, floating hair, hair down, hair up, body hair, hair flip, fake tail
    fake animal ears, fake ears, fake horns, fake wings, fake facial hair, raised eyebrow, raised eyebrows
    furrowed eyebrows, tail raised, breasts apart, between breasts, bouncing breasts, hanging breasts, breasts out
    exclamation mark, question mark, check mark, x mark, bite mark, kiss mark, magical girl
    multiple girls, multiple boys, multiple others, dolphin fin, shark fin"""
)
"""Endings that look like traits and are not: what eyes and lips do, signs, states."""
NOT_A_TRAIT_ENDS = ("on head",)
ACTIONS = words(
    """holding hand hands adjusting covering sitting playing touching grabbing pulling brushing tying licking biting
    kissing looking head face finger fingers arm arms leg legs foot feet no without fake unworn removing cutting
    drying washing combing stroking petting heart cum kneeling standing lying leaning print playing whispering
    patting fixing tucking wiping rubbing eating carrying wearing putting bandaged two-handed adjusted"""
)
"""First words of tags that say what is done; such a tag is no trait whatever it ends with."""

CLASSES = ("people", "body", "worn", "outfit", "expression", "pose", "background", "other")


_EXCEPTED = frozenset(phrase.split()[-1] for phrase in NOT_A_TRAIT)
_STARTS, _EASY_ENDS, _HARD_ENDS = (
    tuple(tuple(phrase.split()) for phrase in listed) for listed in (BODY_STARTS, BODY_EASY_ENDS, BODY_HARD_ENDS)
)


@dataclass(frozen=True, kw_only=True)
class Trait:
    """A trait of a character.

    Attributes:
        kind: "body" or "worn".
        level: 0 is learnt soonest, 1 later.
    """

    kind: str
    level: int


def singular(word: str) -> str:
    """A word folded to its singular by plain rules: ``wings`` -> ``wing``, ``eyelashes`` -> ``eyelash``."""
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@lru_cache(maxsize=65536)
def trait_of(name: str) -> Trait | None:
    """The trait a tag (in normal form) names, or None.

    Source: ``drop_basic_character_tags`` of imgutils 0.19, with its list split into body and worn.
    """
    if is_people_tag(name) or not name or name == "drill" or name.endswith(NOT_A_TRAIT_ENDS):
        return None
    words = name.split()
    if words[0] in ACTIONS and len(words) > 1:
        return None
    if words[-1] in _EXCEPTED and any(" ".join(words[start:]) in NOT_A_TRAIT for start in range(len(words))):
        return None
    if _starts(words, _STARTS):
        return Trait(kind="body", level=1 if words[0].startswith(("scar", "dark")) else 0)
    if _ends(words, _EASY_ENDS) or _in(words[-1], BODY_EASY):
        return Trait(kind="body", level=0)
    if _ends(words, _HARD_ENDS) or _in(words[-1], BODY_HARD):
        return Trait(kind="body", level=1)
    if _in(words[-1], WORN):
        return Trait(kind="worn", level=0)
    return None


@lru_cache(maxsize=65536)
def class_of(name: str) -> str:
    """What a tag (in normal form) is about: one of ``CLASSES``."""
    if is_people_tag(name):
        return "people"
    trait = trait_of(name)
    if trait is not None:
        return trait.kind
    words = name.split() or [""]
    last = words[-1]
    if _in(last, EXPRESSION):
        return "expression"
    if words[0] in POSE_STARTS:
        return "pose"
    if _in(last, OUTFIT):
        return "outfit"
    if _in(last, BACKGROUND):
        return "background"
    return "pose" if _in(last, POSE) else "other"


def class_mask(vocabulary: tuple[str, ...], wanted: str) -> NDArray[np.bool_]:
    """Whether each tag of a vocabulary is of a class, bool [vocabulary]."""
    return np.array([class_of(name) == wanted for name in normals(vocabulary)], dtype=bool)


def _in(word: str, words: frozenset[str]) -> bool:
    return word in words or singular(word) in words


def _starts(words: list[str], starts: tuple[tuple[str, ...], ...]) -> bool:
    return any(words[0] == start[0] and tuple(words[: len(start)]) == start for start in starts)


def _ends(words: list[str], ends: tuple[tuple[str, ...], ...]) -> bool:
    return any(words[-1] == end[-1] and tuple(words[-len(end) :]) == end for end in ends)
