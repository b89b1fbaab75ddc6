"""Python children that know the tree under its import name (for tests of two processes, kills and hidden imports)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PRELUDE = f"""
import runpy
runpy.run_path({str(ROOT / "tests" / "conftest.py")!r})
"""


def start_child(code: str, *arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    """Starts a child that runs the code with ``lora_atelier`` importable; arguments come as ``sys.argv[1:]``."""
    return subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def run_child(code: str, *arguments: str, cwd: Path, timeout_s: float = 120.0, **environment: str) -> str:
    """Runs a child to its end and returns what it printed; fails with its error output when it fails."""
    child = start_child(code, *arguments, cwd=cwd, **environment)
    output, errors = child.communicate(timeout=timeout_s)
    assert child.returncode == 0, errors
    return output
