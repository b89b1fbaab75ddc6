"""What no shipped file may do, and what every file must be."""

import ast
import re
import subprocess

import pytest

from atelier_tests.helpers.sources import ROOT, imports_of, shipped_sources

SOURCES = {source.name: source for source in shipped_sources()}
FORBIDDEN_MODULES = {
    "subprocess": "a node pack that starts programs is flagged",
    "pickle": "it runs code out of files",
    "shelve": "it runs code out of files",
    "marshal": "it runs code out of files",
    "dill": "it runs code out of files",
    "multiprocessing": "classes under ComfyUI's module names cannot be pickled into workers",
    "ctypes": "nothing here needs it",
}
NETWORK_MODULES = {"aiohttp", "http", "httpx", "requests", "socket", "urllib", "websocket", "websockets"}
NETWORK_FILES = ("headless/client.py",)
"""The client of a running ComfyUI server, which only the command line uses."""

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    "os.system",
    "os.popen",
    "os.fork",
    "os.symlink",
    "os.putenv",
    "os.startfile",
    "os.environ.setdefault",
    "os.environ.update",
    "os.environ.pop",
    "torch.load",
    "numpy.load",
    "np.load",
    "yaml.load",
}
CONVERTER = "families/_convert.py"
"""The one door for old files; it names pickle's error to turn it into a sentence."""


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def refuses_pickle(call: ast.Call) -> bool:
    """True for numpy's loader of arrays where it is told in so many words to read nothing but arrays."""
    told = [word.value for word in call.keywords if word.arg == "allow_pickle"]
    is_numpy = dotted(call.func) in ("np.load", "numpy.load")
    return is_numpy and len(told) == 1 and isinstance(told[0], ast.Constant) and told[0].value is False


@pytest.mark.parametrize("name", SOURCES)
def test_forbidden_modules(name):
    for found in imports_of(SOURCES[name]):
        top = found.name.partition(".")[0]
        if not found.own:
            assert top not in FORBIDDEN_MODULES or (name, top) == (CONVERTER, "pickle"), (
                f"{name}:{found.line}: {FORBIDDEN_MODULES.get(top)}"
            )
            assert top not in NETWORK_MODULES or name in NETWORK_FILES, f"{name}:{found.line} opens the network"


@pytest.mark.parametrize("name", SOURCES)
def test_forbidden_calls(name):
    for node in ast.walk(SOURCES[name].tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in FORBIDDEN_CALLS, f"{name}:{node.lineno} calls {called}"
            if called in FORBIDDEN_ATTRIBUTES and not refuses_pickle(node):
                assert (name, called) == (CONVERTER, "torch.load"), f"{name}:{node.lineno} calls {called}"
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            for target in targets:
                written = dotted(target.value) if isinstance(target, ast.Subscript) else dotted(target)
                assert written not in ("os.environ", "environ"), f"{name}:{node.lineno} writes the environment"


def test_the_converter_loads_weights_only():
    calls = [
        node
        for node in ast.walk(SOURCES[CONVERTER].tree)
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load"
    ]
    assert calls
    for call in calls:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        assert isinstance(keywords.get("weights_only"), ast.Constant)
        assert keywords["weights_only"].value is True


@pytest.mark.parametrize("name", SOURCES)
def test_text_files_are_opened_with_an_encoding(name):
    for node in ast.walk(SOURCES[name].tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        keywords = {keyword.arg for keyword in node.keywords}
        if called == "open" or called.endswith(".fdopen"):
            modes = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            binary = any("b" in ast.unparse(mode) for mode in modes)
            assert binary or "encoding" in keywords, f"{name}:{node.lineno} opens a text without encoding"
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            own = called in ("files.write_text",)
            assert own or "encoding" in keywords or len(node.args) > 1, f"{name}:{node.lineno} has no encoding"


@pytest.mark.parametrize("name", SOURCES)
def test_no_error_is_swallowed(name):
    for node in ast.walk(SOURCES[name].tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or dotted(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in node.body)
            assert not (broad and silent), f"{name}:{node.lineno} swallows every error"
        if isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
            kinds = [dotted(argument) for argument in node.args]
            assert "Exception" not in kinds, f"{name}:{node.lineno} swallows every error"
            assert "BaseException" not in kinds, f"{name}:{node.lineno} swallows every error"


@pytest.mark.parametrize("name", SOURCES)
def test_sources_can_be_read_in_the_code_page_of_western_windows(name):
    SOURCES[name].text.encode("cp1252")
    assert "\r" not in SOURCES[name].text


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_left_to_do(name):
    words = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    assert not re.search(rf"\b({'|'.join(words)})\b", SOURCES[name].text)


def text_files():
    """Every text file that git would commit; in an unpacked archive without git, the shipped sources."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode("utf-8").split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = list(SOURCES)
    binary = (".png", ".jpg", ".webp", ".safetensors", ".onnx", ".npz", ".ico", ".ttf")
    return [name for name in listed if name and not name.endswith(binary) and (ROOT / name).is_file()]


def test_no_machine_path_and_no_registry_host():
    slash = "/"
    folders = ("work", "home", "root", "Users")
    hosts = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "anaconda" + ".org")
    patterns = [rf"(?<![\w.\-/]){slash}{folder}{slash}\w" for folder in folders]
    patterns += [r"[A-Z]:[\\/]+Users[\\/]", *(re.escape(host) for host in hosts)]
    wrong = []
    for name in text_files():
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            wrong += [f"{name}:{number}: {line.strip()[:100]}" for pattern in patterns if re.search(pattern, line)]
    assert not wrong


def test_names_in_the_repository_work_on_windows():
    names = text_files()
    reserved = re.compile(r"(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.|/|$)", re.IGNORECASE)
    assert not [name for name in names if re.search(r'[<>:"|?*\\]|[ .](/|$)', name) or reserved.search(name)]
    assert len({name.lower() for name in names}) == len(names)
