"""Remembered folders: those not used for long are forgotten, and of many those used least lately."""

from pathlib import Path

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.index import Index
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.snapshots import KEPT_DAYS, SNAPSHOT_KIND, USED_KIND, forget_old


def days(index: Index, **used: int) -> None:
    for name, day in used.items():
        index.put_many(SNAPSHOT_KIND, [(name.encode(), bytes(1000))])
        index.put_many(USED_KIND, [(name.encode(), day.to_bytes(4, "little"))])


def names(index: Index, kind: str = SNAPSHOT_KIND) -> list[str]:
    return sorted(key.decode() for key, _ in index.items(kind))


def test_what_was_not_used_for_long_goes(tmp_path: Path) -> None:
    with Index(tmp_path / "i.sqlite") as index:
        days(index, old=100, new=100 + KEPT_DAYS - 1, today=100 + KEPT_DAYS)
        index.put_many("header:1", [(b"old", b"stays")])
        assert forget_old(index, today=100 + KEPT_DAYS) == 1
        assert names(index) == names(index, USED_KIND) == ["new", "today"]
        assert index.count("header:1") == 1


def test_of_too_many_those_used_least_lately_go(tmp_path: Path) -> None:
    with Index(tmp_path / "i.sqlite") as index:
        days(index, a=103, b=101, c=102, d=104)
        assert forget_old(index, today=105, kept_bytes=2500) == 2
        assert names(index) == ["a", "d"]


def test_rows_without_a_day_count_from_now_on(tmp_path: Path) -> None:
    with Index(tmp_path / "i.sqlite") as index:
        index.put_many(SNAPSHOT_KIND, [(b"unmarked", b"x")])
        index.put_many(USED_KIND, [(b"gone", bytes(4))])
        assert forget_old(index, today=500) == 1
        assert names(index, USED_KIND) == ["unmarked"]
        assert forget_old(index, today=500 + KEPT_DAYS) == 1
        assert names(index) == []


def test_opening_a_folder_marks_and_forgets(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", {"a.png": "one", "b.png": "two"})
    with Index(tmp_path / "i.sqlite") as index:
        days(index, old=1)
        first = open_folder(tmp_path / "set", DatasetParams(), index=index)
        assert names(index) == names(index, USED_KIND) != []
        assert "old" not in names(index)
        again = open_folder(tmp_path / "set", DatasetParams(), index=index)
        assert [again.caption(row) for row in range(2)] == [first.caption(row) for row in range(2)] == ["one", "two"]
