"""The floors: a module imports from its own or below, and the lower two touch nothing outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hsivi_cli

PACKAGE = Path(hsivi_cli.__file__).parent
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
FLOORS = {
    4: {"cli", "__main__"},
    3: {"train", "sample", "fid", "compare", "infer", "info"},
    2: {
        "teacher",
        "student",
        "draw",
        "detector",
        "images",
        "checkpoint",
        "device",
        "report",
        "runs",
        "start",
        "figures",
        "baselines",
    },
    1: {"chain", "coefficients", "distill", "targets", "gaussian", "inference"},
    0: {"schedule", "objective", "frechet", "points", "config"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
PURE = [name for name in MODULES if FLOOR.get(name, 9) <= 1]


def tree(name):
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def own_imports(name):
    """The package's modules that a module imports, also within its functions."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").startswith("hsivi_cli")
        ):
            module = (node.module or "").removeprefix("hsivi_cli").lstrip(".")
            found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("hsivi_cli.")]
            found |= {n.split(".")[1] for n in names}
    return found & set(MODULES)


def called(name):
    """The dotted names of everything a module calls: "open", "torch.load", ".read_text"."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_every_module_has_a_floor():
    assert set(MODULES) <= set(FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_its_own_floor_or_below(name):
    above = {other for other in own_imports(name) if FLOOR[other] > FLOOR[name]}
    assert not above, f"{name} (floor {FLOOR[name]}) imports {above}"


@pytest.mark.parametrize("name", [n for n in MODULES if FLOOR.get(n) == 3])
def test_verbs_do_not_import_one_another(name):
    assert not own_imports(name) & FLOORS[3]


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
def test_the_lower_floors_open_no_file_print_nothing_and_pick_no_device(name):
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
def test_the_lower_floors_know_neither_diffusers_nor_click(name):
    foreign = {"diffusers", "click", "tqdm", "accelerate", "PIL", "torchvision", "huggingface_hub"}
    for node in ast.walk(tree(name)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        assert not foreign & {n.split(".")[0] for n in names}


def test_config_imports_no_torch():
    names = {a.name for n in ast.walk(tree("config")) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree("config")) if isinstance(n, ast.ImportFrom)}
    assert not {n for n in names if n and n.startswith(("torch", "numpy", "diffusers"))}


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
