"""Runs mypy over the tree under its import name.

mypy wants a package in a folder of its name, and the checkout may be called anything (``My-Lora.Pack``). So the
Python files are mirrored to ``build/types/lora_atelier`` (only those that changed, which keeps mypy's cache warm),
and the paths in mypy's answer are mapped back.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIRROR = ROOT / "build" / "types" / "lora_atelier"
LEFT_OUT = {"api_workflows", "tests", "bench", "build", "web", "docs"}


def sources() -> dict[Path, bytes]:
    """Returns the shipped Python files by path relative to the root."""
    found: dict[Path, bytes] = {}
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if not any(part in LEFT_OUT or part.startswith(".") for part in relative.parts):
            found[relative] = path.read_bytes()
    return found


def mirror(files: dict[Path, bytes]) -> None:
    """Makes the mirror equal to the files, touching only what differs."""
    for old in MIRROR.rglob("*.py"):
        if old.relative_to(MIRROR) not in files:
            old.unlink()
    for relative, content in files.items():
        target = MIRROR / relative
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def main() -> int:
    mirror(sources())
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "lora_atelier"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *sys.argv[1:]]
    answer = subprocess.run(command, cwd=MIRROR.parent, capture_output=True, text=True, check=False)
    print(answer.stdout.replace("lora_atelier/", "").replace("lora_atelier\\", ""), end="")
    print(answer.stderr, end="", file=sys.stderr)
    return answer.returncode


if __name__ == "__main__":
    sys.exit(main())
