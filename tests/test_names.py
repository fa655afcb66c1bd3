"""Names: documentation names only what the tree has, modules have names of their own, and tests mirror the package."""

import ast
import builtins
import re
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path

from premem_jax import keys

ROOT = Path(__file__).parents[1]
ROOMS = ("premem_jax", "configs", "launch", "benchmarks", "tests", "docs")
FILES = [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*"))]
FILES = [path for path in FILES if "__pycache__" not in path.parts]
CODE = [path for path in FILES if path.suffix == ".py"]
PACKAGE = [path for path in CODE if path.parts[0] == "premem_jax"]
PAGES = [Path("README.md"), *(path for path in FILES if path.suffix == ".md" and path.parts[0] == "docs")]
SETTINGS = {key for table in (*keys.TABLES.values(), keys.EVALUATOR) for key in table}
SUFFIXES = {"py", "json", "jsonl", "npz", "html", "parquet", "png"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def words(path: Path) -> str:
    """What people read of a file: the whole page, or the docstrings and comments of a module."""
    text = (ROOT / path).read_text()
    if path.suffix == ".md":
        return text
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(parsed(path)) if isinstance(node, kinds)]
    return "\n".join([*docstrings, *re.findall(r"(?:^|\s)#\s.*", text)])


# ---- Paths -----------------------------------------------------------------------------------------------------------


def spelled_out(path: str) -> list[str]:
    """The paths that braces stand for: `configs/{one,two}.py`."""
    parts = re.split(r"\{(.*?)\}", path)  # every second one was in braces
    return ["".join(choice) for choice in product(*(p.split(",") if i % 2 else [p] for i, p in enumerate(parts)))]


def known(path: str) -> bool:
    """Whether the tree has a path, given from its root or from any folder; `*` stands for part of a name."""
    pattern = re.compile("(.*/)?" + re.escape(path).replace(r"\*", "[^/]*"))
    return any(pattern.fullmatch(file.as_posix()) for file in [*FILES, Path("README.md")])


def unknown_paths(text: str) -> set[str]:
    """Paths in `text` that the tree lacks; capitals stand for a name to fill in."""
    named = re.findall(r"(?<![\w./~-])(?:\.\./)*([\w{},*-][\w{},*/.-]*\.(?:py|md))\b", text)
    named = [path for path in named if not re.search("[A-Z]{4}", path.removesuffix("README.md"))]
    return {path for braces in named for path in spelled_out(braces) if not known(path)}


def test_paths_in_documentation_exist():
    wrong = {str(path): names for path in [*PAGES, *CODE] if (names := unknown_paths(words(path)))}
    assert wrong == {str(Path(__file__).relative_to(ROOT)): {"configs/one.py", "configs/two.py"}}


# ---- Dotted names ----------------------------------------------------------------------------------------------------


@cache
def bound(path: Path) -> set[str]:
    """The names that a module binds at its top level; of a package, its modules too."""
    inner = [other.parent if other.stem == "__init__" else other.with_suffix("") for other in PACKAGE]
    names = {other.name for other in inner if path.stem == "__init__" and other.parent == path.parent}
    for node in parsed(path).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
            case ast.Assign(targets=targets):
                names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


MODULES = {path.parent.name if path.stem == "__init__" else path.stem: path for path in PACKAGE}


def unbound(text: str) -> set[str]:
    """Names in `text` that no module binds: `module.name` in backticks, premem_jax.room.module anywhere."""
    short = re.findall(r"`(?:\w+\.)*([a-z_]+)\.(\w+)(?:\(.*?\))?`", text)
    short = [(module, name) for module, name in short if name not in SUFFIXES and not name.isupper()]
    wrong = {f"{m}.{name}" for m, name in short if m in MODULES and not hasattr(getattr(builtins, m, 0), name)
             and m != "config" and name not in bound(MODULES[m])}  # fmt: skip
    full = re.findall(r"\bpremem_jax((?:\.[a-z_]\w*)+)", text)
    return (wrong | {name for name in full if not importable(name)}) - SETTINGS


def importable(name: str) -> bool:
    """Whether the package has this module, or this name in a module."""
    path, _, last = f"premem_jax{name.replace('.', '/')}".rpartition("/")
    module = Path(f"{path}.py")
    return (
        known(f"{path}/{last}.py") or known(f"{path}/{last}/__init__.py") or (module in CODE and last in bound(module))
    )


def test_dotted_names_in_documentation_exist():
    wrong = {str(path): names for path in [*PAGES, *PACKAGE] if (names := unbound(words(path)))}
    assert not wrong
    text = "`processes.once(x)`, `processes.twice`, premem_jax.main, premem_jax.maine, premem_jax.keys.TABLES"
    assert unbound(text) == {"processes.twice", ".maine"}


# ---- The tree --------------------------------------------------------------------------------------------------------


def test_no_two_modules_have_one_name():
    counted = Counter(path.stem for path in PACKAGE if path.stem != "__init__")
    packages = Counter(path.parent.name for path in PACKAGE if path.stem == "__init__")
    assert {name: count for name, count in (counted + packages).items() if count > 1} == {}


def imported(path: Path) -> set[str]:
    """The modules of the package that a module imports, wherever it does so."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("premem_jax.") for name in found if name.startswith("premem_jax.")}


def test_imports_between_rooms_go_one_way():
    """A room is a folder or a module of the package; of two rooms, only one imports the other, even indirectly."""
    room = lambda name: name.split(".")[0]
    inside = {path: room(".".join(path.with_suffix("").parts[1:])) for path in PACKAGE}
    graph: dict[str, set[str]] = {name: set() for name in inside.values()}
    for path, name in inside.items():
        graph[name] |= {room(other) for other in imported(path)} & graph.keys() - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the rooms
    assert len(graph) > 20 and {"data", "grading"} <= graph["tasks"]


def test_tests_mirror_the_package():
    """A test of one room lies in a folder of its name, and is named after a module there; helpers are no tests."""
    tests = [path.relative_to("tests") for path in CODE if path.parts[0] == "tests" and path.name.startswith("test_")]
    inner = [path for path in tests if len(path.parts) > 1 and path.parts[0] not in ("launch", "configs")]
    rooms = {path.parent.relative_to("premem_jax") for path in PACKAGE}
    for path in inner:
        modules = [other.stem for other in PACKAGE if other.parent == Path("premem_jax", path.parent)]
        rooms_there = [room.name for room in rooms if path.parent in (room, room.parent)]
        assert re.match(rf"test_({'|'.join(modules + rooms_there)})(_|$)", path.stem), path
    assert inner
    imported = [node for path in CODE for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom)]
    named = [f"{node.module}.{alias.name}" for node in imported for alias in node.names]
    assert not [name for name in named if re.match(r"tests\..*\btest_", name)]


def test_no_file_names_another_outside_the_repository():
    """Reference data is reached by `tests/shared.py` alone."""
    outside = re.compile(r"\.\./shared|(?<![\w.])/(?:work|home|tmp)/|\bfacts/")
    named = {path for path in [*PAGES, *CODE] if outside.search(words(path))}
    assert {path.as_posix() for path in named} <= {"tests/shared.py"}
