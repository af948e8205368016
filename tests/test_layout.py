"""The floors: a module imports from its own or below, and the lower two touch nothing outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hsivi_cli

PACKAGE = Path(hsivi_cli.__file__).parent
# bottom up; a module imports from its own floor or one below
FLOORS = [
    "errors",
    "config",
    "files",
    "method",
    "models",
    "metrics",
    "density",
    "tables",
    "report",
    "runs",
    "verbs",
    "arguments",
    "cli",
    "__main__",
]
MODULES = sorted(
    p.relative_to(PACKAGE).with_suffix("").as_posix()
    for p in PACKAGE.rglob("*.py")
    if p != PACKAGE / "__init__.py"
)
PURE = [name for name in MODULES if name.startswith("method/")]
LONGEST = 350


def tree(name):
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def floor_of(name):
    return FLOORS.index(name.split("/")[0])


def own_imports(name):
    """The package's modules and folders that a module imports, also within its functions."""
    here = ["hsivi_cli", *name.split("/")]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom):
            above = here[: -node.level] if node.level else []
            path = [*above, *(node.module or "").split(".")] if node.module else above
            if path[:1] == ["hsivi_cli"]:
                yield from ("/".join([*path[1:], alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (
                n.removeprefix("hsivi_cli.").replace(".", "/") for n in names if "hsivi" in n
            )


def called(name):
    """The dotted names of everything a module calls: "open", "torch.load", ".read_text"."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_every_module_has_a_floor():
    assert {name.split("/")[0] for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_its_own_floor_or_below(name):
    found = [i for i in own_imports(name) if i.split("/")[0] in FLOORS]
    above = {other for other in found if floor_of(other) > floor_of(name)}
    assert not above, f"{name} imports {above}"


def test_verbs_do_not_import_one_another():
    verbs = {name.split("/")[1] for name in MODULES if name.startswith("verbs/")} - {"__init__"}
    for verb in verbs:
        parts = (i.split("/") for i in own_imports(f"verbs/{verb}"))
        others = {p[1] for p in parts if p[0] == "verbs" and len(p) > 1} & verbs - {verb}
        assert not others, f"{verb} imports {others}"


def test_modules_are_short():
    long = {n: len((PACKAGE / f"{n}.py").read_text().splitlines()) for n in MODULES}
    assert not {n: count for n, count in long.items() if count > LONGEST}


@pytest.mark.parametrize("name", MODULES)
def test_text_is_read_and_written_in_utf_8_whatever_the_locale(name):
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.Call):
            continue
        call, last = ast.unparse(node.func), ast.unparse(node.func).rpartition(".")[2]
        modes = [a.value for a in node.args[1:] if isinstance(a, ast.Constant)]
        text = call == "open" and not any("b" in str(mode) for mode in modes)
        method = last in ("read_text", "write_text") and call != "write_text"  # ours
        if text or method:
            said = {keyword.arg for keyword in node.keywords}
            assert "encoding" in said, f"{name}.py:{node.lineno} {call} names no encoding"


OUTSIDE = {
    "open",
    "print",
    "input",
    "exec",
    "eval",
    "torch.load",
    "torch.save",
    "np.load",
    "np.save",
}
FILES = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "unlink"}
DEVICES = {"is_available", "device_count", "current_device", "cuda", "set_default_device"}


@pytest.mark.parametrize("name", PURE)
def test_the_method_opens_no_file_prints_nothing_and_picks_no_device(name):
    for call, line in called(name):
        last = call.rpartition(".")[2]
        assert call not in OUTSIDE, f"{name}.py:{line} calls {call}"
        assert last not in FILES | DEVICES, f"{name}.py:{line} calls {call}"
        assert call != "torch.device", f"{name}.py:{line} makes a device"
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.keyword) and node.arg == "device":
            chosen = isinstance(node.value, ast.Constant)
            assert not chosen, f"{name}.py:{node.value.lineno} names a device"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("sys.stdout", "sys.stderr", "torch.cuda")


@pytest.mark.parametrize("name", PURE)
def test_the_method_knows_neither_diffusers_nor_click(name):
    foreign = {"diffusers", "click", "tqdm", "accelerate", "PIL", "torchvision", "huggingface_hub"}
    for node in ast.walk(tree(name)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        assert not foreign & {n.split(".")[0] for n in names}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_no_torch(arguments):
    code = (
        "import sys, hsivi_cli.cli\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n"
        "    if sys.argv[1:]: hsivi_cli.cli.main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "slow = {'torch', 'diffusers', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'loaded {slow}' if slow else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "hsivi_cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and "train" in done.stdout, done.stderr
