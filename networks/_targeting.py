"""Which modules are trained, with which rank, alpha and learning rate: one readable text.

    IN04-07, OUT03-06                                  blocks, as before (expand_selection)
    groups: attention, feed-forward, resnets           what the modules do
    include: *attn2*, */regular expression/            only these paths
    exclude: *to_out*
    OUT03-06: rank 8, alpha 4, lr 0.5                  settings of some blocks ...
    TE: lr 0.5                                         ... of the text encoder ...
    IN cross-attention: rank 4                         ... or of some groups in some blocks
    block_dims: 2,4,4, ...                             kohya's lists of 25 (SD 1.x) or 23 (SDXL) numbers
    up_lr_weight: 1,1,0.5, ...                         kohya's 12/1/12 or 9/3/9, or a preset such as cosine+.25

Lines end with a new line, or with ` | ` between spaces; what follows `#` is a remark. Later lines win.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from ..core.errors import InputError, UnknownNameError, unknown_name
from ._attach import ModuleSettings
from ._blocks import TEXT_ENCODER, expand_selection
from ._kohya_lists import KOHYA_LISTS, KohyaLists, index_of
from ._spec import Network

GROUP_NAMES = (
    "text-attention",
    "text-mlp",
    "self-attention",
    "cross-attention",
    "feed-forward",
    "projections",
    "resnets",
    "samplers",
    "time",
    "ends",
    "norms",
)
"""What a module does; the families set it."""

_ATTENTION = ("text-attention", "self-attention", "cross-attention")
_LINEAR = (*_ATTENTION, "text-mlp", "feed-forward", "projections")
_CONVOLUTIONS = ("resnets", "samplers")
GROUP_ALIASES: Mapping[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attn": _ATTENTION,
    "attn1": ("self-attention",),
    "attn2": ("cross-attention",),
    "feed-forward": ("feed-forward", "text-mlp"),
    "ff": ("feed-forward", "text-mlp"),
    "mlp": ("feed-forward", "text-mlp"),
    "proj": ("projections",),
    "conv": _CONVOLUTIONS,
    "convolutions": _CONVOLUTIONS,
    "text": ("text-attention", "text-mlp"),
    "attn-only": _ATTENTION,
    "attn-mlp": _LINEAR,
    "default": _LINEAR,
    "unet-convblock-only": _CONVOLUTIONS,
    "full": (*_LINEAR, *_CONVOLUTIONS, "time", "ends"),
}
"""Words for several groups, LyCORIS' presets among them."""

_SETTINGS = {"rank": "rank", "dim": "rank", "alpha": "alpha", "lr": "lr"}
_SETTINGS |= {"conv_rank": "conv_rank", "conv_dim": "conv_rank", "conv_alpha": "conv_alpha"}
_KEYWORDS = ("groups", "include", "exclude")
_PLAIN_LINE = re.compile(r"^[^:=]*$")


class Candidate(Protocol):
    """What choosing needs to know of a module; `families.Target` is one."""

    @property
    def stem(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def block(self) -> str: ...
    @property
    def kind(self) -> Any: ...
    @property
    def group(self) -> str: ...
    @property
    def module(self) -> Any: ...


SomeTarget = TypeVar("SomeTarget", bound=Candidate)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings for the modules of some blocks and groups; None leaves a setting as it is."""

    blocks: tuple[str, ...]
    groups: tuple[str, ...] = GROUP_NAMES
    rank: int | None = None
    alpha: float | None = None
    conv_rank: int | None = None
    conv_alpha: float | None = None
    lr: float | None = None

    def covers(self, target: Candidate) -> bool:
        """Whether it is about this module."""
        return target.block in self.blocks and (target.group in self.groups or not target.group)


@dataclass(frozen=True, kw_only=True)
class Targeting:
    """A parsed text.

    Attributes:
        family_blocks: of the model, in the order of the forward pass.
        blocks: that are trained.
        groups: that are trained, None for those the network trains by itself.
        include: patterns of which a module's path must match one; none: all.
        exclude: patterns of which it must match none.
        rules: settings, later ones win.
        lists: kohya's lists.
    """

    family_blocks: tuple[str, ...]
    blocks: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    lists: KohyaLists = field(default_factory=KohyaLists)

    @property
    def is_plain(self) -> bool:
        """Whether only blocks are chosen."""
        return self == Targeting(family_blocks=self.family_blocks, blocks=self.blocks)

    def canonical(self) -> tuple[str, ...]:
        """The same choice always gives the same texts; of a plain one, the blocks."""
        if self.is_plain:
            return self.blocks
        said = {
            "groups": self.groups,
            "include": self.include,
            "exclude": self.exclude,
            "rules": [_rule_text(rule) for rule in self.rules],
            "lists": self.lists.canonical(),
        }
        return (*self.blocks, *(f"{name}={value}" for name, value in said.items() if value not in (None, (), [])))

    def chosen_groups(self, network: Network, params: Any) -> tuple[str, ...]:
        """The groups by their full names: those of the text, or the network's own."""
        words = self.groups if self.groups is not None else network.groups(params)
        return _groups(words)

    def parts(self, network: Network, params: Any) -> tuple[bool, bool]:
        """Whether modules of the UNet, and of a text encoder, may be chosen at all."""
        groups = self.chosen_groups(network, params)
        text = any(group.startswith("text-") for group in groups) and "linear" in network.adapts
        unet = any(not group.startswith("text-") for group in groups)
        return unet and any(block != TEXT_ENCODER for block in self.blocks), text and TEXT_ENCODER in self.blocks

    def choose(
        self, targets: Iterable[SomeTarget], network: Network, params: Any
    ) -> list[tuple[SomeTarget, ModuleSettings]]:
        """The chosen modules with their settings, in the order of the targets.

        A module whose rank or learning rate is set to 0 is left out.

        Raises:
            InputError: the text sets what this network does not have, or leaves no module.
        """
        self._check(network, params)
        targets = list(targets)
        found: list[tuple[SomeTarget, ModuleSettings]] = []
        for target in targets:
            if target.block not in self.blocks or not self._takes(target, network, params):
                continue
            settings = self._settings(target, params)
            if settings.rank != 0 and settings.lr_factor != 0.0:
                found.append((target, settings))
        if not found:
            fitting = [target for target in targets if self._takes(target, network, params)]
            inhabited = list(dict.fromkeys(target.block for target in fitting))
            raise InputError(
                f"The chosen blocks, groups and patterns hold no module that {network.name} trains (blocks: "
                f"{', '.join(self.blocks) or 'none'}); blocks that do are {', '.join(inhabited) or 'none'}."
            )
        return found

    def _takes(self, target: Candidate, network: Network, params: Any) -> bool:
        """Whether a module is of the chosen groups and patterns, in whichever block."""
        patterns = self.include if self.groups is not None or self.include else network.include
        if target.group and target.group not in self.chosen_groups(network, params):
            return False
        fits = not _layer_kinds(target.kind).isdisjoint(network.adapts)
        return fits and _matches(target, patterns, self.exclude)

    def _settings(self, target: Candidate, params: Any) -> ModuleSettings:
        """Kohya's lists first, then the rules in their order."""
        conv_rank_set = bool(getattr(params, "conv_rank", 0)) or self.lists.has("conv_block_dims")
        spatial = target.kind == "conv3x3"
        number = index_of(target.block, target.path, self.family_blocks)
        own = self.lists.settings_of(number, spatial=spatial)
        settings = ModuleSettings(rank=own.rank, alpha=own.alpha, lr_factor=own.lr_factor)
        for rule in self.rules:
            if not rule.covers(target):
                continue
            rank = rule.conv_rank if spatial and (conv_rank_set or rule.conv_rank is not None) else rule.rank
            alpha = rule.conv_alpha if spatial and (conv_rank_set or rule.conv_alpha is not None) else rule.alpha
            settings = replace(
                settings,
                rank=settings.rank if rank is None else rank,
                alpha=settings.alpha if alpha is None else alpha,
                lr_factor=settings.lr_factor if rule.lr is None else rule.lr,
            )
        return settings

    def _check(self, network: Network, params: Any) -> None:
        sets_rank = any(
            value is not None
            for rule in self.rules
            for value in (rule.rank, rule.alpha, rule.conv_rank, rule.conv_alpha)
        )
        if (sets_rank or self.lists.has_sizes) and network.rank(params) is None:
            raise InputError(
                f"The targets set a rank or alpha, but the network {network.name} has none; take these settings out, "
                "or wire another network."
            )
        if self.lists.has("conv_block_dims") and self.groups is None and not getattr(params, "conv_rank", 0):
            raise InputError(
                "The targets hold conv_block_dims, but conv_rank of the network is 0, so no 3x3 convolution is "
                "trained; set conv_rank, or name the group resnets."
            )


def parse_targeting(text: str, family_blocks: Sequence[str]) -> Targeting:
    """Reads a text; see the head of this file.

    Args:
        text: empty means every block, and the network's own groups.
        family_blocks: the model's blocks in the order of the forward pass.

    Raises:
        InputError: a line that says nothing, a setting out of range, a list of the wrong length.
        UnknownNameError: a block, group, setting or preset that there is not; the nearest are named.
    """
    family = tuple(family_blocks)
    plain: list[str] = []
    given: dict[str, list[str]] = {name: [] for name in _KEYWORDS}
    rules: list[Rule] = []
    lists = KohyaLists()
    for line in _lines(text):
        if _PLAIN_LINE.match(line):
            plain.append(line)
            continue
        left, right = (side.strip() for side in re.split(r"[:=]", line, maxsplit=1))
        keyword = left.lower().replace(" ", "_").replace("-", "_")
        if not right:
            raise InputError(f"The line '{line}' of the targets gives nothing after '{left}'; write {left}: ... .")
        if keyword in _KEYWORDS:
            given[keyword].extend(_words(right))
        elif keyword in KOHYA_LISTS:
            lists = lists.with_list(keyword, right, family)
        else:
            rules.append(_rule(left, right, family))
    groups = tuple(word.lower() for word in given["groups"]) or None
    if groups is not None:
        _groups(groups)
    for pattern in (*given["include"], *given["exclude"]):
        _compiled(pattern)
    return Targeting(
        family_blocks=family,
        blocks=expand_selection(" ".join(plain), family),
        groups=groups,
        include=tuple(given["include"]),
        exclude=tuple(given["exclude"]),
        rules=tuple(rules),
        lists=lists,
    )


def _lines(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in re.split(r"\n|\s\|\s", text))
    return [line for line in lines if line]


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]


def _groups(words: Iterable[str]) -> tuple[str, ...]:
    """Full names of the groups, in their own order.

    Raises:
        UnknownNameError: a word is none.
    """
    found: set[str] = set()
    for word in words:
        if word in GROUP_ALIASES:
            found.update(GROUP_ALIASES[word])
        elif word in GROUP_NAMES:
            found.add(word)
        else:
            raise unknown_name("module group in the targets", word, [*GROUP_NAMES, *GROUP_ALIASES])
    return tuple(name for name in GROUP_NAMES if name in found)


def _rule(left: str, right: str, family: tuple[str, ...]) -> Rule:
    words = _words(left)
    groups = [word.lower() for word in words if word.lower() in GROUP_NAMES or word.lower() in GROUP_ALIASES]
    blocks = _blocks_of([word for word in words if word.lower() not in groups], family)
    values: dict[str, float] = {}
    for part in re.split(r"[,;]", right):
        if not part.strip():
            continue
        found = re.match(r"^([A-Za-z_\- ]+?)\s*[ =]\s*([^\s=]+)$", part.strip())
        if found is None:
            raise InputError(
                f"'{part.strip()}' in the targets' line for {left} is not a setting; write for example rank 8, alpha "
                "4, lr 0.5."
            )
        name = found[1].strip().lower().replace(" ", "_").replace("-", "_")
        if name not in _SETTINGS:
            raise unknown_name(f"setting in the targets' line for {left}", found[1].strip(), list(_SETTINGS))
        values[_SETTINGS[name]] = _number(found[2], f"{found[1].strip()} of {left}")
    if not values:
        raise InputError(f"The targets' line for {left} sets nothing; write for example {left}: rank 8.")
    for name in ("rank", "conv_rank"):
        if name in values and (values[name] != int(values[name]) or values[name] > 1024):
            raise InputError(f"The {name} of {left} in the targets is {values[name]:g}; give a whole number to 1024.")
    for name in ("alpha", "conv_alpha"):
        if name in values and values[name] == 0.0:
            raise InputError(
                f"The {name} of {left} in the targets is 0, so nothing could be learned; give one above 0."
            )
    return Rule(
        blocks=blocks,
        groups=_groups(groups) if groups else GROUP_NAMES,
        rank=_whole(values.get("rank")),
        alpha=values.get("alpha"),
        conv_rank=_whole(values.get("conv_rank")),
        conv_alpha=values.get("conv_alpha"),
        lr=values.get("lr"),
    )


def _blocks_of(words: Sequence[str], family: tuple[str, ...]) -> tuple[str, ...]:
    """The blocks at the beginning of a line; a word that is none may be a misspelt keyword or group."""
    try:
        return expand_selection(" ".join(words), family)
    except UnknownNameError as cause:
        known = [*_KEYWORDS, *KOHYA_LISTS, *GROUP_NAMES, *GROUP_ALIASES]
        if len(words) == 1 and difflib.get_close_matches(words[0].lower(), known, n=1):
            raise unknown_name("beginning of a line of the targets", words[0], known) from cause
        raise


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1e6:
        raise InputError(f"The {what} in the targets is '{text}'; give a number from 0, such as 0.5.")
    return value


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern with `*` and `?`, or between slashes a regular expression; both must match the whole path or a part.

    Raises:
        InputError: not a regular expression.
    """
    if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
        try:
            return re.compile(pattern[1:-1])
        except re.error as cause:
            raise InputError(f"'{pattern}' in the targets is not a regular expression: {cause}.") from cause
    return re.compile(fnmatch.translate(pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"))


def _matches(target: Candidate, include: Sequence[str], exclude: Sequence[str]) -> bool:
    def any_of(patterns: Sequence[str]) -> bool:
        return any(pattern.search(name) for pattern in map(_compiled, patterns) for name in (target.path, target.stem))

    return (not include or any_of(include)) and not any_of(exclude)


def _layer_kinds(kind: str) -> set[str]:
    if kind == "norm":
        return {"layer_norm", "group_norm"}
    return {"linear"} if kind == "linear" else {"conv2d"}


def _rule_text(rule: Rule) -> str:
    values = {name: getattr(rule, name) for name in ("rank", "alpha", "conv_rank", "conv_alpha", "lr")}
    shown = ",".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
    return f"{'+'.join(rule.blocks)} {'+'.join(rule.groups)}: {shown}"
