"""Small helpers for texts that people read."""


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 picture``, ``2 pictures``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """A name as it can be shown in one line: control and broken characters become escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
