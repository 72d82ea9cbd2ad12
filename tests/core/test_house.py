"""The house's rules: imports run one way, in no circle, and no module takes a name of the standard library."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the ground up: a room imports from itself and from those before it.
ROOMS = ("kernels", "dittools", "pipelines", "benchmarks", "training", "cli")
# `import dittools` joins the rooms up to pipelines; those above may take names from it.
LAYERS = ("kernels", "dittools", "pipelines", "facade", "benchmarks", "training", "cli")


@cache
def modules() -> dict[str, Path]:
    """Files of the rooms by the name they are imported under."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if room == "dittools" else ("dittools", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    if module in ("dittools", "dittools.__main__"):
        return "facade" if module == "dittools" else "cli"
    second = module.split(".")[1]
    return second if second in ROOMS else "dittools"


def imports(module: str, source: str, known) -> set[str]:
    """Modules of the house that a module imports, anywhere in it: inside of functions too, but for type checkers."""
    found = set()
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node, known)
            # A name out of a package is a module of it, or something that its own file holds.
            names = [f"{base}.{each.name}" if f"{base}.{each.name}" in known else base for each in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        else:
            continue
        found.update(name for name in names if name in known)
    return found - {module}


def _base(module: str, node: ast.ImportFrom, known) -> str:
    """The package or module that names are imported from, also where dots say it."""
    if not node.level:
        return node.module or ""
    package = any(other.startswith(f"{module}.") for other in known)
    above = module.split(".")[: len(module.split(".")) - node.level + package]
    return ".".join([*above, *([node.module] if node.module else [])])


def _nodes(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node)


@cache
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path.read_text(encoding="utf-8"), known) for name, path in known.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan)."""
    index, low, stack, on, found = {}, {}, [], set(), []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        on.add(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in on:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
                on.discard(group[-1])
            if len(group) > 1:
                found.append(sorted(group))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        for name in edges:
            if name not in index:
                visit(name)
    finally:
        sys.setrecursionlimit(limit)
    return found


def upward(edges: dict[str, set[str]]) -> list[str]:
    return sorted(
        f"{name} -> {other}"
        for name, others in edges.items()
        for other in others
        if LAYERS.index(room_of(other)) > LAYERS.index(room_of(name))
    )


def test_imports_run_one_way():
    assert upward(graph()) == []


def test_no_imports_run_in_a_circle():
    assert circles(graph()) == []


def test_no_module_takes_a_name_of_the_standard_library():
    taken = [str(path.relative_to(ROOT)) for path in modules().values() if path.stem in sys.stdlib_module_names]
    assert [name for name in taken if not name.endswith(("__init__.py", "__main__.py"))] == []
    folders = {path.parent for path in modules().values()}
    assert sorted(str(path) for path in folders if path.name in sys.stdlib_module_names) == []


MOST_PARAMETERS, MOST_RECIPE_LINES = 8, 90
# What these decorate is given its parameters by a compiler, by the command line, or by torch's schema of an operator.
GIVEN = ("jit", ".command", ".callback", "custom_op", "register_fake")


def wide(source: str, most: int = MOST_PARAMETERS) -> list[str]:
    """Functions of more parameters than one remembers, without ``self``; commands are functions of that name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name == "command":
            continue
        if any(name in ast.unparse(each) for each in node.decorator_list for name in GIVEN):
            continue
        args = node.args
        names = [each.arg for each in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        if len(names) - (names[:1] in (["self"], ["cls"])) > most:
            found.append(node.name)
    return found


def test_no_function_takes_more_than_eight_parameters():
    found = {name: wide(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_a_wide_function_is_seen():
    eight = "a, b, c, d, e, f, g, h"
    assert wide(f"def f({eight}, *, i): ...") == ["f"] and wide(f"class C:\n    def f(self, {eight}): ...") == []
    assert wide(f"@app.command()\ndef f({eight}, i): ...") == [] and wide(f"@cache\ndef f({eight}, i): ...") == ["f"]


def test_recipes_stay_short():
    from dittools.methods import METHODS

    files = {Path(sys.modules[kind.__module__].__file__) for kind in METHODS.values()}
    long = {path.name: count for path in files if (count := len(path.read_text().splitlines())) > MOST_RECIPE_LINES}
    assert len(files) > 15 and long == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import dittools.a", {"dittools.a"}),
        ("def f():\n    from dittools.a import name", {"dittools.a"}),
        ("from dittools import a, b", {"dittools.a", "dittools"}),
        ("from .a import name", {"dittools.a"}),
        ("from . import a", {"dittools.a"}),
        ("import importlib\nimportlib.import_module('dittools.a')", {"dittools.a"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dittools.a", set()),
        ("import dittools.me", set()),
    ],
)
def test_every_kind_of_import_is_seen(source, found):
    assert imports("dittools.me", source, {"dittools": 0, "dittools.a": 0, "dittools.me": 0}) == found


def test_an_upward_import_and_a_circle_are_seen():
    edges = {"dittools.kernels.x": {"dittools.y"}, "dittools.y": {"dittools.z"}, "dittools.z": {"dittools.kernels.x"}}
    assert upward(edges) == ["dittools.kernels.x -> dittools.y"]
    assert circles(edges) == [["dittools.kernels.x", "dittools.y", "dittools.z"]]
    assert upward({"dittools.pipelines.a": {"dittools"}, "dittools": set()}) == ["dittools.pipelines.a -> dittools"]
