"""Every name that a page gives exists: modules and what is in them, files, flags, options, and words of the code."""

import importlib
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from dittools import caches, corrections, methods

ROOT = Path(__file__).parents[1]
OURSELVES = Path(__file__).relative_to(ROOT).as_posix()
HYPOTHETICAL = {"dittools/methods/diagonal.py", "dittools/caches/alternate.py"}  # what the worked examples would write
FOREIGN_FLAGS = {  # typer's, uv's, srun's, torchrun's
    *("--install-completion", "--torch-backend", "--kill-on-bad-exit", "--nproc-per-node", "--node-rank"),
}
FOREIGN = {
    "flash_attn",
    "cu_seqlens",
    "kv_num_blocks",
    "lse_n",
    "s_n",
    "kv_indices",
    "mask_block_cnt",
    "mask_block_idx",
    "m_block",
}


@cache
def files() -> list[str]:
    """Files of the checkout, those not added yet too."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


PAGES = [name for name in files() if name.endswith(".md")]


@cache
def words() -> frozenset[str]:
    """Every word of the sources."""
    sources = [name for name in files() if name.endswith((".py", ".toml", ".yml", ".jinja", ".css", ".js"))]
    text = "\n".join(
        (ROOT / name).read_text(encoding="utf-8") for name in sources if name != "tests/test_docs_names.py"
    )
    return frozenset(re.findall(r"\w+", text))


@cache
def flags() -> dict[str, set[str]]:
    """Flags by verb, "bench kernel" being one; "" has those of the programs of this repository too."""
    from dittools.cli import app

    found = {}
    for verb, command in app.command().commands.items():
        for name, one in {
            verb: command,
            **{f"{verb} {n}": c for n, c in getattr(command, "commands", {}).items()},
        }.items():
            found[name] = {f for p in one.params for f in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    programs = [name for name in files() if re.match(r"(tools|training|benchmarks|tests|cli)/.*\.py$", name)]
    programs.remove(OURSELVES)
    said = {f for name in programs for f in re.findall(r'"(--[a-z][\w-]*)', (ROOT / name).read_text(encoding="utf-8"))}
    return {**found, "": FOREIGN_FLAGS.union(said, *found.values())}


def told(page: str) -> str:
    """A page without commands that made old measurements, which stand as they were given."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("Command: `"))


def quoted(text: str) -> list[str]:
    """What stands in backticks within a line."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.S))


def exists(dotted: str) -> bool:
    """Whether a dotted name can be imported, or is had from what can be."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        try:
            for name in parts[end:]:
                found = getattr(found, name)
        except AttributeError:
            return False
        return True
    return False


def missing(text: str) -> list[str]:
    """Names of a text that do not exist."""
    wrong = [name for name in sorted(set(re.findall(r"(?<![\w.])dittools(?:\.\w+)+", text))) if not exists(name)]
    for token in quoted(text):
        if re.fullmatch(r"[\w./-]+\.py|[\w-]+(/[\w-]+)*/", token):
            known = (
                files() if token.endswith(".py") else {f"{folder}/" for name in files() for folder in _folders(name)}
            )
            if token not in HYPOTHETICAL and not any(f"/{name}".endswith(f"/{token}") for name in known):
                wrong.append(token)
        for flag in re.findall(r"(?<!\S)(--[a-z][\w-]*)", token):
            wrong += [] if flag in flags()[""] else [flag]
        if re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?(=.*)?", token) and not token.endswith((".md", ".json", ".html")):
            wrong += [word for word in re.findall(r"[A-Za-z_]\w*_\w+|[A-Z]\w+", token) if word not in words() | FOREIGN]
    for kind, option in re.findall(r"\b([a-z]\w+):([a-z]\w+)=", text):
        for registry in (methods, caches, corrections):
            if kind in registry.names() and option not in registry.options(kind):
                wrong.append(f"{kind}:{option}")
    return wrong + _wrong_flags(text)


def _folders(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _wrong_flags(text: str) -> list[str]:
    """Flags that a command line of `dittools` has not got."""
    wrong = []
    shown = "\n".join([*re.findall(r"```bash\n(.*?)```", text, re.S), *quoted(text)])
    for line in re.findall(r"(?:^|&& )(dittools [a-z][^\n`#|>]*)", shown, re.M):
        verb, *arguments = shlex.split(line.replace("...", ""))[1:]
        if verb not in flags():
            wrong.append(f"dittools {verb}")
            continue
        verb = f"{verb} {arguments[0]}" if arguments and f"{verb} {arguments[0]}" in flags() else verb
        wrong += [part for part in arguments if part.startswith("--") and part not in flags()[verb]]
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_a_page_exists(page):
    assert missing(told(page)) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("see `dittools.methods.base.Methode`", "dittools.methods.base.Methode"),
        ("run `python -m dittools.tool.figures`", "dittools.tool.figures"),
        ("in `caches/basis.py`", "caches/basis.py"),
        ("in `dittools/cache/`", "dittools/cache/"),
        ("with `--spasity`", "--spasity"),
        ("```bash\ndittools generate --sweep a\n```", "--sweep"),
        ("`dittools draw`", "dittools draw"),
        ("`easycache:threshhold=0.1`", "easycache:threshhold"),
        ("`of_first_branch(key, make)` and `Sparze`", "of_first_branch"),
        ("`Sparze`", "Sparze"),
    ],
)
def test_a_name_that_is_gone_is_found(text, name):
    assert name in missing(text)
