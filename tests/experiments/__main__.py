"""Runs the experiments from the repository's root: python -m tests.experiments --only a-character,b --seeds 0,1,2."""

# ruff: noqa: E402, I001
import argparse
from pathlib import Path

from .. import conftest  # noqa: F401  the package under its stable name, the root off the path

import torch

from . import report
from .runner import DEFAULT_FOLDER, EXPERIMENTS, SEEDS, read_lines, run_missing, table
from .verdicts import told


def main() -> None:
    """Run what is missing, then print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default=",".join(EXPERIMENTS), help=f"some of {', '.join(EXPERIMENTS)}; a is all that begin with a-"
    )
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what is there")
    parser.add_argument("--report", action="store_true", help="write tables and pictures of d to l into FOLDER/report")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [
        name
        for name in EXPERIMENTS
        for wanted in given.only.split(",")
        if name == wanted or name.startswith(f"{wanted}-")
    ]
    if not names:
        parser.error(f"--only {given.only}: there are {', '.join(EXPERIMENTS)}")
    if not given.table:
        run_missing(names, [int(seed) for seed in given.seeds.split(",")], folder=given.folder)
    lines = list(read_lines(given.folder / "results.jsonl"))
    print(table(lines))
    print(told(lines))
    if given.report:
        report.write(lines, given.folder)


if __name__ == "__main__":
    main()
