import pytest

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.networks._blocks import expand_selection

BLOCKS = (*(f"IN{i:02d}" for i in range(12)), "MID", *(f"OUT{i:02d}" for i in range(12)))
ALL = ("TE", *BLOCKS)


def numbered(kind: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{kind}{number:02d}" for number in range(first, last + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ALL),
        ("  ", ALL),
        ("ALL", ALL),
        ("all", ALL),
        ("UNET", BLOCKS),
        ("TE", ("TE",)),
        ("base", ("TE",)),
        ("MID", ("MID",)),
        ("m00", ("MID",)),
        ("IN04", ("IN04",)),
        ("in4", ("IN04",)),
        ("OUT03-06", numbered("OUT", 3, 6)),
        ("out3-6", numbered("OUT", 3, 6)),
        ("IN04-07,OUT03-06", (*numbered("IN", 4, 7), *numbered("OUT", 3, 6))),
        ("OUT03-06 IN04-07", (*numbered("IN", 4, 7), *numbered("OUT", 3, 6))),
        ("IN04 - 07 , MID, te", ("TE", *numbered("IN", 4, 7), "MID")),
        ("IN05-OUT05", (*numbered("IN", 5, 11), "MID", *numbered("OUT", 0, 5))),
        ("IN11-MID", ("IN11", "MID")),
        ("IN", numbered("IN", 0, 11)),
        ("OUT;MID", ("MID", *numbered("OUT", 0, 11))),
        ("IN04,IN04,IN03-05", numbered("IN", 3, 5)),
        ("NOT IN", ("TE", "MID", *numbered("OUT", 0, 11))),
        ("not TE, IN, OUT", ("MID",)),
        ("NOT UNET", ("TE",)),
    ],
)
def test_selections(text: str, expected: tuple[str, ...]) -> None:
    assert expand_selection(text, BLOCKS) == expected


def test_te_may_be_among_the_given_blocks() -> None:
    assert expand_selection("ALL", ALL) == ALL


@pytest.mark.parametrize(
    "text", ["IN12", "OUT03-12", "DOWN", "IN-4-5", "MID-3", "1,0,1", "NOT MIDD", "\x00", "IN04\u201307"]
)
def test_unknown_names_list_the_nearest(text: str) -> None:
    with pytest.raises(UnknownNameError, match="block in the selection"):
        expand_selection(text, BLOCKS)


@pytest.mark.parametrize(
    ("text", "words"),
    [("IN07-04", "backwards; write IN04-IN07"), ("NOT", "after NOT"), ("NOT ALL", "no block"), ("TE-IN04", "TE")],
)
def test_selections_without_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        expand_selection(text, BLOCKS)
