"""The floors of the house: imports run downward only, in no circle, and the core stays light."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nmsparsity

ROOT = Path(nmsparsity.__file__).parent
FACE = "nmsparsity"
FLOORS = [
    {"registry", "layout", "table", "native", "optimizers", "memory", "micro_batches"},
    {"pattern"},
    {"sites", "shards", "masks", "promises", "second_moments", "methods"},
    {"exceptions", "targets"},
    {"packed"},
    {"kernels"},
    {"layers"},
    {"report", "telemetry", "flip_guide"},
    {"master", "masters", "optimizer_state", "plots", "pruning"},
    {"step_hooks"},
    {"sparsifier"},
    {"compression"},
    {"integrations"},
    {"tasks"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
ABOVE_THE_CORE = {"integrations", "tasks", "bench", "cli", "__main__"}
CORE_NEEDS = {"torch", "numpy", "safetensors"}
ONE_USE = {"plots": {"matplotlib"}}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = (FACE, *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str, at_start_only: bool = False) -> tuple[str, ...]:
    """What a module imports, as dotted names, those inside functions too."""
    tree = ast.parse(modules()[name].read_text())
    found: list[str] = []
    for node in _nodes(tree, at_start_only):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import hides which floor it goes to"
            found += [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in modules()
                else str(node.module)
                for alias in node.names
            ]
    return tuple(found)


def _nodes(tree: ast.Module, at_start_only: bool) -> Iterator[ast.AST]:
    """All nodes but those for type checkers only; at the start: outside functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if at_start_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def ours(name: str, at_start_only: bool = False) -> set[str]:
    return {i for i in imports(name, at_start_only) if i.split(".")[0] == FACE} - {name}


def part(name: str) -> str:
    """The file or folder on a floor: ``"packed"`` for ``"nmsparsity.packed.bits"``."""
    return name.split(".")[1]


def floor(name: str) -> int:
    (found,) = [number for number, parts in enumerate(FLOORS) if part(name) in parts]
    return found


INSIDE = [name for name in modules() if name != FACE]


def test_every_module_has_its_floor() -> None:
    listed = [name for parts in FLOORS for name in parts]
    assert len(listed) == len(set(listed))
    assert {part(name) for name in INSIDE} == set(listed)


@pytest.mark.parametrize("name", INSIDE)
def test_imports_run_downward(name: str) -> None:
    """Or to a neighbour on the same floor; circles are caught below."""
    for imported in ours(name) - {FACE}:
        assert floor(imported) <= floor(name), (
            f"{name} (floor {floor(name)}) imports {imported} (floor {floor(imported)})"
        )


def test_only_the_top_floor_uses_the_face() -> None:
    assert {part(name) for name in INSIDE if FACE in ours(name)} <= {"cli", "__main__"}


def test_no_circles_between_files() -> None:
    graph = {name: ours(name) for name in modules()}
    list(TopologicalSorter(graph).static_order())


def test_no_circles_between_parts() -> None:
    graph: dict[str, set[str]] = {}
    for name in INSIDE:
        graph.setdefault(part(name), set()).update(part(other) for other in ours(name) - {FACE})
    for name, needed in graph.items():
        needed.discard(name)
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [n for n in INSIDE if part(n) not in ABOVE_THE_CORE])
def test_the_core_needs_little(name: str) -> None:
    allowed = CORE_NEEDS | {FACE} | ONE_USE.get(part(name), set())
    outside = {i.split(".")[0] for i in imports(name)} - set(sys.stdlib_module_names)
    assert outside <= allowed


@pytest.mark.parametrize("name", [n for n in INSIDE if part(n) == "methods"])
def test_methods_know_no_module(name: str) -> None:
    assert not [i for i in imports(name) if i.startswith("torch.nn")]
    assert "nn" not in modules()[name].read_text().split()
    assert {part(i) for i in ours(name)} <= {"methods", "registry", "second_moments"}


@pytest.mark.parametrize("name", [n for n in INSIDE if part(n) == "kernels"])
def test_kernels_know_no_model(name: str) -> None:
    """Functions of ``torch.nn.functional`` they may call."""
    tree = ast.parse(modules()[name].read_text())
    assert "nn" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {part(i) for i in ours(name)} <= {"kernels", "packed", *FLOORS[0], *FLOORS[1]}


@pytest.mark.parametrize("name", [n for n in INSIDE if part(n) == "layers"])
def test_layers_know_no_training(name: str) -> None:
    allowed = {"layers", "kernels", "packed", *FLOORS[0], *FLOORS[1]}
    assert {part(i) for i in ours(name)} <= allowed - {"optimizers"}


def test_the_face_imports_nothing_at_start() -> None:
    assert {i.split(".")[0] for i in imports(FACE, at_start_only=True)} <= {"importlib", "typing"}


def test_files_stay_short() -> None:
    assert not {name: lines for name in INSIDE if (lines := _lines(name)) > 300}


def _lines(name: str) -> int:
    return len(modules()[name].read_text().splitlines())
