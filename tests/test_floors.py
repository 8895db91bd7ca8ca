"""The house rules that a reader of the code relies on, held by reading the code itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("types", "container"),
    ("manifest",),
    ("ops", "replay", "certainty"),
    ("kernels",),
    ("documents",),
    ("tokens",),
    ("prompt", "quoting"),
    ("policies", "queries"),
    ("observe",),
    ("router",),
    ("recipe",),
    ("store",),
    ("tiers",),
    ("memory",),
    ("output", "widening"),
    ("attention",),
    ("readers",),
    ("calibration",),
    ("fold",),
    ("schema",),
    ("recall",),
    ("trace", "cite", "turns"),
    ("ingest", "ask"),
    ("view", "serve"),
    ("train", "bench"),
)
"""Modules and packages of the engine, lowest first. A module imports from floors below its own,
or from its own package; two names on one floor do not import each other."""

LIGHT = ("errors", "types", "container", "manifest", "replay")
"""Modules that the command line may import before it needs torch."""

HEAVY = {"torch", "transformers", "numpy", "pypdf", "pypdfium2", "tokenizers"}

TOP_LEVEL = {
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "sekv_cli",
    "engine",
    "tests",
    "docs",
    ".ci",
    ".gitignore",
    ".gitattributes",
}

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc"}

HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
SOURCES = sorted(
    path for folder in ("engine", "sekv_cli") for path in (ROOT / folder).rglob("*.py")
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports anywhere, with the line; relative ones made absolute.

    `from package import name` counts as `package.name`, which is right for a submodule and
    harmless for anything else.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"


def part(module: str) -> str:
    """The name in the table that an engine module belongs to."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    """A stage knows the stages before it and never the ones after it."""
    mine = module_name(path)
    if not mine.startswith("engine."):
        return
    assert part(mine) in HEIGHT, f"{mine} has no floor; name one in FLOORS"
    upward = [
        f"line {line}: {other}"
        for line, other in imports(path)
        if other.startswith("engine.")
        and part(other) in HEIGHT
        and part(other) != part(mine)
        and HEIGHT[part(other)] >= HEIGHT[part(mine)]
    ]
    assert not upward, f"{mine} imports upward: {upward}"


def test_engine_package_itself_imports_nothing() -> None:
    """`import engine.types` must not pay for anything but types."""
    found = {other.split(".")[0] for _, other in imports(ROOT / "engine" / "__init__.py")}
    assert found <= {"__future__"}


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.is_relative_to(ROOT / "engine")], ids=module_name
)
def test_engine_never_imports_the_command_line(path: Path) -> None:
    """The engine is a library first; the command line is one of its users."""
    assert [other for _, other in imports(path) if other.split(".")[0] == "sekv_cli"] == []


def test_every_import_is_a_declared_dependency() -> None:
    """What happens to be installed beside something else is not ours to import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[ <>=!~\[;]", line, maxsplit=1)[0].lower()
        for line in [*project["dependencies"], *extras["serve"], *extras["kernels"]]
    }
    owners = packages_distributions()
    found = {other.split(".")[0] for path in SOURCES for _, other in imports(path)}
    foreign = found - set(sys.stdlib_module_names) - {"engine", "sekv_cli"}
    undeclared = {
        name
        for name in foreign - declared
        if not declared & {owner.lower() for owner in owners.get(name, [])}
    }
    assert undeclared == set()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_executes_what_it_reads(path: Path) -> None:
    """No pickle in any of its guises: opening a store must never run what is in it."""
    found = [
        f"line {line}: {other}"
        for line, other in imports(path)
        if other.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"torch.load", "torch.save", "eval", "exec"}:
                found.append(f"line {node.lineno}: {called}")
            found += [
                f"line {node.lineno}: allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            ]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_error_is_swallowed_unnamed(path: Path) -> None:
    """Who catches everything hides defects: a handler names what it expects, or cleans up and
    raises again."""
    broad = {"Exception", "BaseException"}
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type
            names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
            unnamed = any(name is None or ast.unparse(name) in broad for name in names)
            if unnamed and ast.unparse(node.body[-1]) != "raise":
                found.append(node.lineno)
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_module_is_a_drawer(path: Path) -> None:
    """A module is named after what it is, opens by saying so, and shares no global state."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert path.stem not in DRAWERS
    assert not tree.body or ast.get_docstring(tree), "a module opens with what it is"
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)] == []


def test_light_modules_stay_light() -> None:
    """What the command line names before the real work must not load the real work."""
    program = "import sys\n" + "".join(f"import engine.{name}\n" for name in LIGHT)
    program += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert HEAVY & set(done.stdout.split()) == set()


def test_the_repository_has_only_known_top_level_entries() -> None:
    """A newcomer sees the whole house at a glance."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    assert found <= TOP_LEVEL
