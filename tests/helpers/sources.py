"""The shipped Python sources as syntax trees."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "core",
    "dataset",
    "evaluator",
    "families",
    "headless",
    "merger",
    "networks",
    "nodes",
    "pico",
    "tagger",
    "trainer",
)


@dataclass(frozen=True)
class Source:
    """One file: its path relative to the root with ``/``, its text and its tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The top folder; empty for files of the root."""
        return self.name.partition("/")[0] if "/" in self.name else ""


@dataclass(frozen=True)
class Import:
    """One imported module: dotted name, relative to the root when ``own``."""

    name: str
    own: bool
    line: int
    inside_function: bool


@cache
def shipped_sources() -> tuple[Source, ...]:
    """Every Python file of the rooms and of the root."""
    paths = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    sources = []
    for path in sorted(paths):
        text = path.read_bytes().decode("utf-8")  # line ends as they are
        sources.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text, str(path))))
    return tuple(sources)


def imports_of(source: Source) -> Iterator[Import]:
    """Every import of a file; ``from . import x`` gives the module x."""
    package = list(Path(source.name).parent.parts)
    for node, inside_function in _walk(source.tree, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, False, node.lineno, inside_function)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield Import(node.module or "", False, node.lineno, inside_function)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield Import(".".join([*base, name]), True, node.lineno, inside_function)


def _walk(node: ast.AST, inside_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside_function
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(child, inside_function or is_function)
