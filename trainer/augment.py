"""What a training run does with its pictures and captions beside showing them: variants, caches, sizes, batches."""

from dataclasses import dataclass

from ..core.errors import InputError
from ..core.params import Params, param
from ..dataset.batches import SMALL_BATCHES
from ..dataset.resolutions import RESOLUTION_USES, parse_resolutions
from ..dataset.tints import TintRanges
from ..dataset.views import ViewRules

MAX_VARIANTS = 64


@dataclass(frozen=True, kw_only=True)
class AugmentParams(Params):
    """Variants of pictures and captions that are cached, sizes, and small batches; the defaults change nothing."""

    variants: int = param(
        1,
        doc="Variants of every picture that are encoded and kept; the first is the plain one, and each is shown once "
        "before any comes again. 4 suits most sets of up to a few thousand pictures; the cache grows with it.",
        minimum=1,
        maximum=MAX_VARIANTS,
        step=1,
    )
    random_crop: bool = param(
        True, doc="The further variants are cut at a random place instead of the middle; a focal point stays in."
    )
    crop_zoom: float = param(
        1.0,
        doc="Random crops may be this much closer than the bucket needs, so that square pictures move as well; 1.15 "
        "is mild.",
        minimum=1.0,
        maximum=3.0,
        step=0.05,
    )
    colour_jitter: bool = param(
        False, doc="The further variants get other colours, within the ranges below; not for styles and colour names."
    )
    brightness_min: float = param(0.9, doc="Smallest factor on brightness.", minimum=0.1, maximum=3.0, step=0.05)
    brightness_max: float = param(1.1, doc="Largest factor on brightness.", minimum=0.1, maximum=3.0, step=0.05)
    contrast_min: float = param(
        0.9, doc="Smallest factor on contrast.", minimum=0.1, maximum=3.0, step=0.05, advanced=True
    )
    contrast_max: float = param(
        1.1, doc="Largest factor on contrast.", minimum=0.1, maximum=3.0, step=0.05, advanced=True
    )
    saturation_min: float = param(
        0.9, doc="Smallest factor on saturation.", minimum=0.0, maximum=3.0, step=0.05, advanced=True
    )
    saturation_max: float = param(
        1.1, doc="Largest factor on saturation.", minimum=0.0, maximum=3.0, step=0.05, advanced=True
    )
    hue_min_degrees: float = param(
        -8.0, doc="Furthest turn of the hues one way.", unit="degrees", minimum=-180.0, maximum=180.0, step=1.0,
        advanced=True,
    )  # fmt: skip
    hue_max_degrees: float = param(
        8.0, doc="Furthest turn of the hues the other way.", unit="degrees", minimum=-180.0, maximum=180.0, step=1.0,
        advanced=True,
    )  # fmt: skip
    caption_variants: int = param(
        0,
        doc="Forms of every caption (shuffled, thinned, wildcards drawn) that are encoded before the run and kept on "
        "disk, so that the text encoder can leave the device; 0 draws a new form every time and keeps it there.",
        minimum=0,
        maximum=MAX_VARIANTS,
        step=1,
    )
    wildcards: bool = param(
        False, doc="Captions may say {red|blue|green}: one of the words is drawn each time. Off: braces are text."
    )
    kohya_latents: bool = param(
        False,
        doc="Take the latents of .npz files that kohya's scripts left beside the pictures, where they fit; they hold "
        "one draw each, so these pictures vary less.",
        advanced=True,
    )
    resolutions_px: str = param(
        "", doc="Further resolutions beside the run's own, separated by commas, such as 768, 1024; each has buckets."
    )
    resolution_use: str = param(
        "fit",
        doc="fit: every picture goes to the largest resolution that it fills without being enlarged, else to the "
        "smallest. each: every picture is trained at each of them, as a picture of its own.",
        choices=RESOLUTION_USES,
    )
    small_batches: str = param(
        "keep",
        doc="What becomes of a bucket's last batch where it is not full. keep: it stays small. repeat: it is filled up "
        "with pictures of its bucket. merge: buckets smaller than a batch join the nearest one, and the last batches "
        "are evened out, so that none holds one picture alone.",
        choices=SMALL_BATCHES,
    )

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        for name, unit in (("brightness", ""), ("contrast", ""), ("saturation", ""), ("hue", "_degrees")):
            low, high = getattr(self, f"{name}_min{unit}"), getattr(self, f"{name}_max{unit}")
            if low > high:
                raise InputError(
                    f"{name}_min{unit} is {low:g} and {name}_max{unit} is {high:g}: the range is the wrong way round; "
                    "exchange the two"
                )
        if self.variants > 1 and not (self.random_crop or self.colour_jitter):
            raise InputError(
                f"variants is {self.variants}, but they would all be the same: switch random_crop or colour_jitter "
                "on, or set variants to 1"
            )
        for name, is_on in (("colour_jitter", self.colour_jitter), ("crop_zoom", self.crop_zoom > 1.0)):
            if is_on and self.variants == 1:
                raise InputError(f"{name} is for further variants, but variants is 1, the plain one: set it to 4")
        if self.crop_zoom > 1.0 and not self.random_crop:
            raise InputError(
                f"crop_zoom is {self.crop_zoom:g} and random_crop is off: it is the zoom of random crops; switch "
                "random_crop on, or set crop_zoom to 1"
            )
        parse_resolutions(self.resolutions_px)

    def rules(self) -> ViewRules:
        """Returns what the variants of a picture differ in."""
        if self.variants == 1:
            return ViewRules()
        tints = TintRanges(
            brightness=(self.brightness_min, self.brightness_max),
            contrast=(self.contrast_min, self.contrast_max),
            saturation=(self.saturation_min, self.saturation_max),
            hue_degrees=(self.hue_min_degrees, self.hue_max_degrees),
        )
        return ViewRules(
            variants=self.variants,
            random_crop=self.random_crop,
            max_zoom=self.crop_zoom,
            tints=tints if self.colour_jitter else None,
        )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The further resolutions in px."""
        return parse_resolutions(self.resolutions_px)
