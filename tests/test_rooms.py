"""The one-way street: cli -> analysis, pipeline -> views -> tables -> mail -> protocols -> wire; and each library's home."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "analyzer"
STREET = (
    "__main__",
    "cli",
    "__init__",
    "live",
    "ledger",
    "backlog",
    "analysis",
    "slicing",
    "extraction",
    "pipeline",
    "shards",
    "doctor",
    "views",
    "tables",
    "mail",
    "protocols",
    "wire",
)
"""A module may import from its own place and from places to the right."""
SHARED = ("columns", "errors", "limits", "scratch")
"""What every room may import; these import nothing of ours but each other."""
HOMES = {
    "scapy": ("wire",),
    "dpkt": ("wire",),
    "dns": ("protocols/dns",),
    "pandas": ("tables", "views"),
    "pyarrow": ("tables",),
    "click": ("cli",),
    "rich": ("cli", "views"),
}
"""Libraries that only these places may import."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    return house(path.relative_to(PACKAGE).with_suffix("").parts[0])


def house(name: str) -> str:
    """The command is one place in several files: cli.py, cli_live.py, ..."""
    return "cli" if name.startswith("cli_") else name


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names imported, and whether only a type checker does."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for name in node.names:
                yield f"{node.module}.{name.name}", id(node) in typing_only


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = place(path)
    for name, _ in imports(path):
        top, _, rest = name.partition(".")
        if top != "analyzer":
            continue
        there = house(rest.split(".")[0])
        if there not in STREET + SHARED:
            there = "__init__"  # a name of the package itself: `from analyzer import __version__`
            if rest == "__version__":
                continue
        if here in SHARED:
            assert there in SHARED, f"{name}: {here} is shared, and knows no room"
        elif there not in SHARED:
            assert STREET.index(there) >= STREET.index(here), f"{name}: against the street"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_at_home(path):
    here = str(path.relative_to(PACKAGE).with_suffix(""))
    for name, typing_only in imports(path):
        homes = HOMES.get(name.partition(".")[0])
        if homes is not None and not typing_only:
            assert here.startswith(homes), f"{name} is imported by {here}; its home is {homes}"


def test_every_module_has_a_place():
    assert {place(path) for path in MODULES} <= {*STREET, *SHARED}
