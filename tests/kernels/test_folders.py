"""What holds of every file of the kernels: no private name crosses files, and proofs hold for all that they import."""

import ast
from pathlib import Path

import pytest

from dittools.kernels import checked

ROOM = Path(checked.__file__).parent
FILES = {path.relative_to(ROOM).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in ROOM.rglob("*.py")}
OPERATIONS = sorted({name.split("/")[0] for name in FILES if name.endswith("/dispatch.py")})
# A Triton kernel with a launch of its own, which runs before the kernel that proves itself; who chooses between Triton
# and plain PyTorch; and a type.
APART = {"permute/dispatch.py", "choice.py", "block_sparse/sample.py"}


def imports(name):
    """(file of the kernels, name taken from it)."""
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dittools.kernels."):
            home = node.module.removeprefix("dittools.kernels.").replace(".", "/") + ".py"
            yield from ((home, each.name) for each in node.names)


def test_no_private_name_crosses_files():
    assert [(name, *found) for name in FILES for found in imports(name) if found[1].startswith("_")] == []


@pytest.mark.parametrize("kernel", checked.SOURCES)
def test_a_proof_holds_for_every_file_that_the_kernel_takes_names_from(kernel):
    listed = set(checked.SOURCES[kernel])
    taken = {home for name in listed for home, _ in imports(name)}
    assert taken - listed == APART & taken
    # And for none that it does not: each but the launch is taken by another.
    assert {name for name in listed - taken if not name.endswith("/hopper.py")} == set()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_says_its_maths_and_names_its_files(operation):
    text = (ROOM / operation / "README.md").read_text(encoding="utf-8")
    files = [name.split("/")[1] for name in FILES if name.startswith(f"{operation}/") and "__init__" not in name]
    assert [name for name in files if f"`{name}`" not in text] == []
    assert "```" in text
