"""How a folder of pictures is opened and trained: the options of the node and of the command line."""

from dataclasses import dataclass

from ..core.errors import InputError
from ..core.params import Params, param
from .folder_scan import SITE_TAGS, ReadOptions
from .layout import LAYOUTS, MAX_REPEATS
from .sidecars import CAPTION_EXTENSIONS, SEPARATORS

UNDERSCORES = ("keep", "to spaces")


@dataclass(frozen=True, kw_only=True)
class DatasetParams(Params):
    """How a folder of pictures is opened and trained."""

    layout: str = param(
        "auto",
        doc="How sub-folders are read. kohya: each sub-folder N_name is seen N times per epoch. plain: all pictures "
        "alike. auto: kohya where such names are found.",
        choices=LAYOUTS,
    )
    repeats: int = param(
        1,
        doc="How often each picture is seen per epoch; multiplies the repeat count of a folder's name.",
        minimum=1,
        maximum=MAX_REPEATS,
    )
    shuffle_captions: bool = param(
        True,
        doc="Puts the tags after the kept ones in a new order each time, so that none owes its effect to its place.",
    )
    keep_tokens: int = param(
        1,
        doc="Tags at the front of a caption that stay there and are never dropped, such as the trigger word.",
        unit="tags",
        minimum=0,
        maximum=1000,
    )
    caption_prefix: str = param(
        "", doc="Tags put in front of every caption, such as a trigger word; never shuffled or dropped alone."
    )
    caption_dropout: float = param(
        0.0,
        doc="Share of times a picture is trained without any caption, which teaches the effect without a prompt.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    flip: bool = param(False, doc="Mirrors pictures at random; leave it off where left and right matter.")
    recursive: bool = param(True, doc="Reads sub-folders too; in kohya's layout, those inside each N_name folder.")
    class_text: str = param(
        "",
        doc="Caption of pictures that have no caption file, where the folder's name gives no text.",
        advanced=True,
    )
    tag_dropout: float = param(
        0.0,
        doc="Share of the tags after the kept ones that is left out each time.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        advanced=True,
    )
    caption_extension: str = param(
        ".txt",
        doc="Ending of caption files. Where a picture has none with this ending, .txt and .caption are tried.",
        advanced=True,
    )
    verify_pictures: bool = param(
        False,
        doc="Decodes every picture while opening, so that damage in the middle of a file is found at once. Slow.",
        advanced=True,
    )
    separator: str = param(
        "auto",
        doc="What stands between the tags of a caption file. auto: commas, or one tag per line, or blanks between a "
        "site's tags such as long_hair; the report says how each was read.",
        choices=SEPARATORS,
        advanced=True,
    )
    underscores: str = param(
        "keep",
        doc="to spaces: long_hair becomes 'long hair'; faces such as ^_^ stay as they are.",
        choices=UNDERSCORES,
        advanced=True,
    )
    site_tags: str = param(
        SITE_TAGS[0],
        doc="Tags from JSON files of danbooru, e621 or gallery-dl beside the pictures: used where a picture has no "
        "caption file, put before its caption, or never. Score and rating are kept in either of the first two.",
        choices=SITE_TAGS,
        advanced=True,
    )
    site_ratings: bool = param(
        False, doc="Makes the rating that a site gives a picture its last tag, such as 'explicit'.", advanced=True
    )

    def __post_init__(self) -> None:
        """Also checks that the caption ending is one.

        Raises:
            InputError: A value is refused.
        """
        super().__post_init__()
        ending = self.caption_extension
        if len(ending) < 2 or not ending.startswith(".") or not ending[1:].isalnum():
            raise InputError(f"caption_extension is {ending!r}, allowed is a dot and letters, such as .txt or .caption")

    def read_options(self) -> ReadOptions:
        """How captions are found and taken apart."""
        return ReadOptions(
            endings=tuple(dict.fromkeys((self.caption_extension.lower(), *CAPTION_EXTENSIONS))),
            separator=self.separator,
            site_tags=self.site_tags,
            site_ratings=self.site_ratings,
            verify=self.verify_pictures,
        )
