"""How the names of tags are written into captions and prompts."""

from ..dataset.normal import KAOMOJI, normal

__all__ = ["KAOMOJI", "compared", "written"]


def written(name: str, *, underscores_to_spaces: bool, escape_parentheses: bool) -> str:
    """Return a tag as it is written into a caption or prompt.

    Args:
        name: As in the table.
        underscores_to_spaces: Write underscores as spaces, except in faces such as ``^_^``.
        escape_parentheses: Put a backslash before parentheses, for prompts; captions are read as they are.
    """
    if underscores_to_spaces and name not in KAOMOJI:
        name = name.replace("_", " ")
    return name.replace("(", "\\(").replace(")", "\\)") if escape_parentheses else name


def compared(name: str) -> str:
    """Return a tag in the form in which two are compared: underscores, spaces and escapes do not count."""
    return normal(name)
