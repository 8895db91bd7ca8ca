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

from repository import ROOT

ROOMS = (
    "errors",
    "types",
    "object_storage",
    "documents",
    "compression",
    "attention",
    "store",
    "models",
    "memory",
    "ingest",
    "answer",
    "api",
    "lab",
)
"""What lies in engine/, lowest first. A file imports from rooms below its own, or from its own."""

LIGHT = (
    "errors",
    "types",
    "object_storage",
    "api",
    "store.container",
    "store.manifest",
    "answer.replay",
)
"""Modules that the command line may import before it needs torch."""

HEAVY = {"torch", "transformers", "numpy", "pypdf", "pypdfium2", "tokenizers"}

TOP_LEVEL = {
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "sekv_cli",
    "engine",
    "tests",
    "docs",
    "MANIFEST.in",
    ".ci",
    ".github",
    ".gitignore",
    ".gitattributes",
}

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc"}

SOURCES = sorted(
    path for folder in ("engine", "sekv_cli") for path in (ROOT / folder).rglob("*.py")
)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports anywhere, with the line; relative ones made absolute.

    `from package import name` counts as `package.name`, which is right for a submodule and
    harmless for anything else.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"


def room(module: str) -> str:
    """The room that a module of the engine belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_the_engine_has_these_rooms_and_no_others() -> None:
    found = {room(module_name(path)) for path in SOURCES if path.is_relative_to(ROOT / "engine")}
    assert found - {""} == set(ROOMS)


def test_tests_lie_in_the_rooms_that_they_test() -> None:
    found = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert found == set(ROOMS) - {"errors", "types", "object_storage", "api"} | {"cli", "server"}


def test_imports_point_one_way() -> None:
    """A room knows the rooms below it and never those above it; none knows the command line."""
    upward = []
    for path in SOURCES:
        if not path.is_relative_to(ROOT / "engine"):
            continue
        mine = room(module_name(path))
        height = ROOMS.index(mine) if mine else -1
        upward += [
            f"{module_name(path)}, line {line}: {other}"
            for line, other in imports(path)
            if other.startswith("sekv_cli")
            or (
                room(other) in ROOMS
                and other.startswith("engine.")
                and ROOMS.index(room(other)) > height
            )
        ]
    assert upward == []


def test_every_import_is_a_declared_dependency() -> None:
    """What happens to be installed beside something else is not ours to import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[ <>=!~\[;]", line, maxsplit=1)[0].lower()
        for line in [
            *project["dependencies"],
            *extras["serve"],
            *extras["kernels"],
            *extras["cpu"],
            *extras["cluster"],
            *extras["object"],
            *extras["llm"],
            "pydantic",  # comes with llm, whose options are its models
        ]
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


def test_nothing_executes_what_it_reads() -> None:
    """No pickle in any of its guises: opening a store must never run what is in it."""
    found = []
    for path in SOURCES:
        found += [
            f"{path.name}, line {line}: {other}"
            for line, other in imports(path)
            if other.split(".")[0] in UNSAFE_MODULES
        ]
        for node in ast.walk(TREES[path]):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in {"torch.load", "torch.save", "eval", "exec"}:
                found.append(f"{path.name}, line {node.lineno}: {called}")
            found += [
                f"{path.name}, line {node.lineno}: allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            ]
    assert found == []


def test_no_error_is_swallowed_unnamed() -> None:
    """Who catches everything hides defects: a handler names what it expects, or cleans up and
    raises again."""
    broad = {"Exception", "BaseException"}
    found = []
    for path in SOURCES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type
                names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
                unnamed = any(name is None or ast.unparse(name) in broad for name in names)
                if unnamed and ast.unparse(node.body[-1]) != "raise":
                    found.append(f"{path.name}, line {node.lineno}")
    assert found == []


def test_every_module_says_what_it_is_and_shares_no_state() -> None:
    for path, tree in TREES.items():
        assert path.stem not in DRAWERS
        assert not tree.body or ast.get_docstring(tree), f"{path} opens without a docstring"
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), path


def test_no_class_name_means_two_things() -> None:
    """A name that several files give to a class of theirs is looked up in the wrong one."""
    owners: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module_name(path))
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}


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
