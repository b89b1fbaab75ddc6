"""A recipe: tag steps as text, one step to a line, read and written, run over a data set.

    # what a character LoRA wants
    normalise
    blacklist match=glob: *_request, absurdres, highres
    alias:
        kitty -> cat
        kitten -> cat
    budget limit=75 unit=tokens
    trigger keep_at_front=yes: kayoko (blue archive)

A line names a step, then parameters as ``name=value`` (in double quotes where a value has blanks), then after a colon
the step's main text: on the same line, or in the indented lines below it. ``#`` begins a comment.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import AtelierError, FormatError, InputError, UnknownNameError, unknown_name
from ..core.params import Parameter, Params, Scalar, check_value
from ..dataset.diff import Diff, RuleCount, changed_rows, compare
from ..dataset.table import Dataset
from .steps._spec import Step, StepContext, steps

MAX_CHARS = 4_000_000
MAX_STEPS = 200
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_BARE = re.compile(r'[^\s"#]+')
_YES = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class RecipeStep:
    """One step of a recipe.

    Attributes:
        step: What is done.
        params: With which parameters.
        line: Its line in the text, from 1; 0 when it comes from no text.
    """

    step: Step
    params: Params
    line: int = 0


def parse_recipe(text: str) -> tuple[RecipeStep, ...]:
    """Reads a recipe.

    Raises:
        FormatError: A line cannot be read; line and column are named.
        UnknownNameError: A step or parameter is not known; the nearest names are listed.
        InputError: A value is refused, or the recipe is too long.
    """
    if len(text) > MAX_CHARS:
        raise InputError(f"the recipe has {len(text)} characters, allowed are {MAX_CHARS}; put long lists into files")
    known = steps()
    lines = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[RecipeStep] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        number = place + 1
        place += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t":
            column = len(line) - len(line.lstrip()) + 1
            raise FormatError(
                f"line {number}, column {column}: {line.strip()[:40]!r} is indented, but the line above ends with no "
                "colon; begin a step at the left edge"
            )
        header = _Header(line, number, known)
        if header.block:
            body, place = _block(lines, place)
            header.set_main(body, number, len(line))
        found.append(RecipeStep(step=header.step, params=header.params(), line=number))
        if len(found) > MAX_STEPS:
            raise InputError(f"line {number}: the recipe has more than {MAX_STEPS} steps; split it into several")
    return tuple(found)


def recipe_text(recipe: Sequence[RecipeStep]) -> str:
    """Writes a recipe as text that reads back as the same steps; parameters at their defaults are left out."""
    return "".join(f"{_step_text(part.step, part.params)}\n" for part in recipe)


def run_step(dataset: Dataset, step: Step, params: Params, context: StepContext) -> tuple[Dataset, Diff]:
    """Runs one step and says what it did.

    Raises:
        AtelierError: The step refuses its parameters.
    """
    context.progress.check()
    result, rules, unmatched = step.apply(dataset, params, context)
    return result, compare(dataset, result, title=step.title, rules=rules, unmatched=unmatched)


def run_recipe(dataset: Dataset, text: str, context: StepContext) -> tuple[Dataset, Diff]:
    """Reads a recipe and runs it; a cancel between two steps leaves nothing half done.

    Raises:
        AtelierError: The text cannot be read, or a step refuses its parameters; the line is named.
    """
    return run_steps(dataset, parse_recipe(text), context)


def run_steps(dataset: Dataset, recipe: Sequence[RecipeStep], context: StepContext) -> tuple[Dataset, Diff]:
    """Runs steps one after the other; the report has a heading and the rules of each."""
    current = dataset
    rules: list[RuleCount] = []
    unmatched: list[str] = []
    for number, part in enumerate(recipe, 1):
        context.progress.update(number - 1, len(recipe), part.step.title)
        place = f"step {number}" + (f" (line {part.line})" if part.line else "") + f", {part.step.name}"
        try:
            result, counts, sentences = part.step.apply(current, part.params, context)
        except AtelierError as refusal:
            raise InputError(f"{place}: {refusal}") from refusal
        touched = len(changed_rows(current.tags, result.tags))
        before, after = len(current.tags.ids), len(result.tags.ids)
        rules.append(
            RuleCount(
                rule=f"{number}. {part.step.name}",
                touched=touched,
                removed=max(before - after, 0),
                added=max(after - before, 0),
            )
        )
        rules += [
            RuleCount(
                rule=f"   {count.rule}",
                touched=count.touched,
                removed=count.removed,
                added=count.added,
                note=count.note,
            )
            for count in counts
        ]
        unmatched += [f"{part.step.name}: {sentence}" for sentence in sentences]
        current = result
    context.progress.update(len(recipe), len(recipe), "done")
    noun = "step" if len(recipe) == 1 else "steps"
    title = f"recipe of {len(recipe)} {noun}"
    return current, compare(dataset, current, title=title, rules=rules, unmatched=unmatched)


class _Header:
    """The first line of a step, read from left to right."""

    def __init__(self, line: str, number: int, known: Mapping[str, Step]) -> None:
        self._line = line
        self._number = number
        self._place = 0
        self._values: dict[str, Scalar] = {}
        self.block = False
        name = self._word("the name of a step")
        if name not in known:
            raise UnknownNameError(f"{self._where(0)}: {unknown_name('step', name, known)}")
        self.step = known[name]
        self._parameters = {parameter.name: parameter for parameter in self.step.params.parameters()}
        self._read()

    def params(self) -> Params:
        """The parameters that were read."""
        try:
            return self.step.params(**self._values)
        except InputError as refusal:
            raise InputError(f"line {self._number}: {refusal}") from refusal

    def set_main(self, text: str, number: int, column: int) -> None:
        """Takes the text after the colon."""
        if not self.step.main:
            raise FormatError(
                f"line {number}, column {column}: the step {self.step.name!r} takes no text after a colon; give its "
                f"parameters as name=value ({', '.join(self._parameters)})"
            )
        if self.step.main in self._values:
            raise FormatError(f"line {number}, column {column}: {self.step.main!r} is given twice; leave one of them")
        self._set(self._parameters[self.step.main], text, column - 1)

    def _read(self) -> None:
        while True:
            start = self._place
            self._blanks()
            if self._place >= len(self._line):
                return
            char = self._line[self._place]
            if char == ":":
                self._place += 1
                rest = self._line[self._place :].strip()
                if rest:
                    self.set_main(rest, self._number, self._place + 1)
                self.block = not rest
                return
            if char == "#" and start < self._place:
                return
            self._assignment()

    def _assignment(self) -> None:
        start = self._place
        name = self._word("a parameter")
        if not self._line.startswith("=", self._place):
            raise FormatError(
                f"{self._where(start)}: {name!r} is followed by no '='; write parameters as name=value, and the main "
                "text after a colon"
            )
        if name not in self._parameters:
            error = unknown_name(f"parameter of the step {self.step.name!r}", name, self._parameters)
            raise UnknownNameError(f"{self._where(start)}: {error}")
        if name in self._values:
            raise FormatError(f"{self._where(start)}: {name!r} is given twice; leave one of them")
        self._place += 1
        at = self._place
        self._set(self._parameters[name], self._value(), at)

    def _set(self, parameter: Parameter, text: str, place: int) -> None:
        try:
            self._values[parameter.name] = check_value(parameter, _typed(parameter, text))
        except InputError as refusal:
            raise type(refusal)(f"{self._where(place)}: {refusal}") from refusal

    def _value(self) -> str:
        if self._line.startswith('"', self._place):
            return self._quoted()
        found = _BARE.match(self._line, self._place)
        if not found:
            return ""
        value = found.group()
        end = self._place + len(value)
        # A colon at the end of a word, before a blank or the line's end, opens the main text.
        if value.endswith(":") and (end == len(self._line) or self._line[end] in " \t"):
            value = value[:-1]
        self._place += len(value)
        return value

    def _quoted(self) -> str:
        start = self._place
        self._place += 1
        parts: list[str] = []
        while self._place < len(self._line):
            char = self._line[self._place]
            self._place += 1
            if char == '"':
                return "".join(parts)
            if char == "\\":
                escape = self._line[self._place : self._place + 1]
                if escape not in _ESCAPES or not escape:
                    raise FormatError(
                        f"{self._where(self._place - 1)}: '\\{escape}' is not known inside quotes; allowed are "
                        '\\" \\\\ \\n \\r \\t'
                    )
                parts.append(_ESCAPES[escape])
                self._place += 1
            else:
                parts.append(char)
        raise FormatError(f'{self._where(start)}: the quotes are never closed; put a " at the end of the value')

    def _word(self, what: str) -> str:
        found = _NAME.match(self._line, self._place)
        if not found:
            given = self._line[self._place : self._place + 20]
            raise FormatError(f"{self._where(self._place)}: expected {what}, found {given!r}")
        self._place = found.end()
        return found.group().replace("-", "_").lower()

    def _blanks(self) -> None:
        while self._place < len(self._line) and self._line[self._place] in " \t":
            self._place += 1

    def _where(self, place: int) -> str:
        return f"line {self._number}, column {place + 1}"


def _block(lines: Sequence[str], place: int) -> tuple[str, int]:
    """The indented lines below a header without their indentation, and where the next step begins."""
    body: list[str] = []
    while place < len(lines) and (not lines[place].strip() or lines[place][0] in " \t"):
        body.append(lines[place].expandtabs(4).rstrip())
        place += 1
    return textwrap.dedent("\n".join(body)).strip("\n"), place


def _typed(parameter: Parameter, text: str) -> Scalar:
    if parameter.type is bool:
        if text.lower() not in _YES:
            raise InputError(f"{parameter.name} is {text!r}, allowed is yes or no")
        return _YES[text.lower()]
    if parameter.type in (int, float):
        try:
            return int(text) if parameter.type is int else float(text)
        except ValueError as cause:
            kind = "a whole number" if parameter.type is int else "a number"
            raise InputError(f"{parameter.name} is {text[:40]!r}, allowed is {kind}") from cause
    return text


def _step_text(step: Step, params: Params) -> str:
    parts = [step.name]
    main = ""
    for parameter in params.parameters():
        value = getattr(params, parameter.name)
        if value == parameter.default:
            continue
        if parameter.name == step.main and _reads_back(value):
            main = value
        else:
            parts.append(f"{parameter.name}={_value_text(value)}")
    header = " ".join(parts)
    if not main:
        return header
    return f"{header}: {main}" if "\n" not in main else f"{header}:\n" + textwrap.indent(main, "    ")


def _reads_back(text: str) -> bool:
    """Whether a main text survives being written after a colon or as a block."""
    lines = text.split("\n")
    plain = all(line == line.strip() and line and line.isprintable() for line in lines)
    return plain and bool(text)


def _value_text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str):
        return repr(value)
    if _BARE.fullmatch(value) and not value.endswith(":"):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    for letter, char in (("n", "\n"), ("r", "\r"), ("t", "\t")):
        escaped = escaped.replace(char, f"\\{letter}")
    return f'"{escaped}"'
