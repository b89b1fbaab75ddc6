"""Derives from the node classes everything that repeats them; run it after every change of a node.

    python tests/golden/update.py            write the files
    python tests/golden/update.py --check    only say which would change (exit code 1)

Written are the golden file of ids, inputs and outputs (``tests/golden/nodes.json``), the texts for translation
(``locales/en/nodeDefs.json``), a help page per node (``web/docs/<Id>.md``) and the table of nodes in README.md. A
help page may hold more than what is generated: what stands below the line ``<!-- notes -->`` is kept.

An id, an input or an output that disappears, moves or changes its type breaks every saved workflow, and so does a new
input of an old node that is required; it is refused unless ``--break-workflows`` is given.
"""

import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "nodes.json"
NODE_DEFS = ROOT / "locales" / "en" / "nodeDefs.json"
DOCS = ROOT / "web" / "docs"
README = ROOT / "README.md"
NOTES = "<!-- notes -->"
TABLE_START, TABLE_END = "<!-- nodes -->", "<!-- /nodes -->"

if "atelier_tests" not in sys.modules:
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))
from atelier_tests.helpers.node_table import flat_inputs, is_combo, load_node_table  # noqa: E402


def golden_of(nodes: dict[str, Any]) -> dict[str, Any]:
    """Returns what saved workflows depend on."""
    return {
        name: {
            "inputs": [
                [key, {"COMBO": [str(choice) for choice in kind]} if is_combo(kind) else kind]
                for key, kind, _ in flat_inputs(node)
            ],
            "outputs": list(map(list, zip(node["output_names"], node["outputs"], strict=True))),
            "required": [row[0] for row in node["inputs"].get("required", [])],
        }
        for name, node in nodes.items()
    }


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Says in one sentence each what a saved workflow would miss; additions at the end are no break."""
    found: list[str] = []
    for name, before in old.items():
        if name not in new:
            found.append(f"the node {name} is gone")
            continue
        for part in ("inputs", "outputs"):
            after = new[name][part]
            for index, (key, kind) in enumerate(before[part]):
                if index >= len(after) or after[index][0] != key:
                    found.append(f"{name}: {part} number {index} was {key!r}; it was removed, renamed or moved")
                    break
                found += [f"{name}.{key}: {reason}" for reason in _type_breaks(kind, after[index][1])]
        known = {key for key, _ in before["inputs"]}
        asked = [key for key in new[name].get("required", ()) if key not in known]
        found += [f"{name}.{key}: it is new and required; make it optional" for key in asked]
    return found


def _type_breaks(before: Any, after: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        gone = [choice for choice in before["COMBO"] if choice not in after["COMBO"]]
        return [f"the choices {gone} are gone"] if gone else []
    return [] if before == after else [f"its type was {before} and is {after}"]


def node_defs_of(nodes: dict[str, Any]) -> dict[str, Any]:
    """Returns the table of texts for translation, in ComfyUI's layout."""
    return {
        name: {
            "display_name": node["title"],
            "description": node["description"],
            "inputs": {
                key: {"name": key, "tooltip": options.get("tooltip", "")} for key, _, options in flat_inputs(node)
            },
            "outputs": {
                str(index): {"name": key, "tooltip": tooltip}
                for index, (key, tooltip) in enumerate(zip(node["output_names"], node["output_tooltips"], strict=True))
            },
        }
        for name, node in nodes.items()
    }


def page_of(node: dict[str, Any], notes: str) -> str:
    """Returns the help page of a node; notes are what a person wrote below the mark."""
    lines = [f"# {node['title']}", "", node["description"], ""]
    if flat_inputs(node):
        lines += ["## Inputs", "", "| input | type | default | what it does |", "|---|---|---|---|"]
        for key, kind, options in flat_inputs(node):
            cells = (f"`{key}`", _kind_words(kind), _default_words(kind, options), options.get("tooltip", ""))
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    if node["outputs"]:
        lines += ["## Outputs", "", "| output | type | what it is |", "|---|---|---|"]
        rows = zip(node["output_names"], node["outputs"], node["output_tooltips"], strict=True)
        lines += [f"| `{key}` | {kind} | {_cell(tooltip)} |" for key, kind, tooltip in rows]
        lines.append("")
    return "\n".join(lines) + (f"\n{NOTES}\n{notes}" if notes else "")


def _kind_words(kind: Any) -> str:
    if not is_combo(kind):
        return str(kind)
    # Lists of files differ from machine to machine; here they hold nothing but what is built in.
    if len(kind) < 2 or any(str(choice).endswith("(built in)") for choice in kind):
        return "choice"
    return "one of " + ", ".join(str(choice) for choice in kind)


def _default_words(kind: Any, options: dict[str, Any]) -> str:
    default = options.get("default")
    if default is None or default == "":
        return ""
    span = f" ({options['min']} to {options['max']})" if "min" in options and "max" in options else ""
    shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
    return f"{shown}{span}"


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def readme_table_of(nodes: dict[str, Any]) -> str:
    """Returns the table of nodes for README.md, by menu group."""
    lines = ["| group | node | what it is for |", "|---|---|---|"]
    for node in sorted(nodes.values(), key=lambda node: (node["category"], node["title"])):
        group, title = node["category"].partition("/")[2], node["title"].removesuffix(" (Atelier)")
        lines.append(f"| {group} | {title} | {_cell(node['description'])} |")
    return "\n".join(lines)


def files_of(nodes: dict[str, Any]) -> dict[Path, str]:
    """Returns every derived file with its text."""
    files = {GOLDEN: _json(golden_of(nodes)), NODE_DEFS: _json(node_defs_of(nodes))}
    for name, node in nodes.items():
        path = DOCS / f"{name}.md"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        files[path] = page_of(node, old.partition(f"{NOTES}\n")[2])
    readme = README.read_text(encoding="utf-8") if README.exists() else ""
    if TABLE_START in readme and TABLE_END in readme:
        before, _, rest = readme.partition(TABLE_START)
        after = rest.partition(TABLE_END)[2]
        files[README] = f"{before}{TABLE_START}\n{readme_table_of(nodes)}\n{TABLE_END}{after}"
    return files


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def changed_files(nodes: dict[str, Any]) -> dict[Path, str]:
    """Returns the derived files whose text differs from what lies on disk; stale help pages have an empty text."""
    files = files_of(nodes)
    changed = {
        path: text for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    stale = {path: "" for path in DOCS.glob("Atelier*.md") if path not in files}
    return {**changed, **stale}


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        table = load_node_table(Path(folder))
    if table["messages"]:
        print("\n".join(["some nodes could not be loaded:", *table["messages"]]), file=sys.stderr)
        return 1
    nodes = table["nodes"]
    old = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    broken = breaks(old, golden_of(nodes))
    if broken and "--break-workflows" not in arguments:
        print("\n".join(["saved workflows would break:", *broken]), file=sys.stderr)
        return 1
    changed = changed_files(nodes)
    for path, text in changed.items():
        print(path.relative_to(ROOT).as_posix())
        if "--check" in arguments:
            continue
        if not text:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if changed and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
