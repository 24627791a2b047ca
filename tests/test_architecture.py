"""The house stays as docs/design.md draws it: layers, no cycles, no hidden imports, small files and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "fastllm"
FILES = sorted(SRC.rglob("*.py"))

# Rooms and files of one layer that may import those before them.
ORDERED = {
    0: ["errors", "options", "answers", "schema", "types", "clock", "loop"],
    5: [
        *("settings", "attachment", "keywords", "params", "build", "worker", "rows", "batch", "embedding", "resources"),
        *("run_options", "client", "sync_resources", "sync"),
    ],
}
# Room or file -> layer. Imports point down; rooms of one layer do not import each other, except as ORDERED says.
LAYERS = {
    **dict.fromkeys(ORDERED[0], 0),
    "policy": 1,
    **dict.fromkeys(["providers", "transport", "cache", "leases", "formats", "local"], 2),
    "engine": 3,
    **dict.fromkeys(["jobs", "progress"], 4),
    **dict.fromkeys(ORDERED[5], 5),
    **dict.fromkeys(["dashboard", "gateway", "distributed", "contrib", "testing"], 6),
    "cli": 7,
}
# Foreign library -> the only places that may import it.
ONE_PLACE = {
    "httptools": ("transport/", "testing/", "gateway/inbound.py"),
    "uvloop": ("loop.py",),
    "rich": ("progress/rich.py", "cli/"),
    "click": ("cli/",),
    "sqlite3": ("cache/disk.py", "leases/sqlite.py", "gateway/database.py"),
    "tqdm": ("progress/notebook.py",),
    "xllamacpp": ("local/llamacpp.py",),
    "cryptography": ("testing/tls.py",),
    "openai": (),
    "jsonschema_rs": ("schema/jsonschema.py",),
    "pydantic": (),
    "starlette": ("gateway/",),
    "python_multipart": ("gateway/multipart.py",),
    "uvicorn": ("gateway/server.py",),
    "prometheus_client": ("gateway/metrics.py", "gateway/metrics_sum.py"),
    "opentelemetry": ("contrib/otel.py", "contrib/otel_export.py"),
    "pyarrow": ("formats/parquet.py",),
    "fsspec": ("formats/remote.py",),
    "ray": ("distributed/",),
    "redis": ("cache/redis.py", "leases/redis.py"),
}
LAZY_IMPORTERS = {"__init__.py", "build.py"}  # these load by name, not by an import statement


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[ast.AST, str, bool]]:
    """Every import as (node, absolute module, stands inside a function)."""
    package = ["fastllm", *path.relative_to(SRC).parent.parts]
    tree = ast.parse(path.read_text())
    hidden = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, id(node) in hidden
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "fastllm":
                for alias in node.names:
                    yield node, f"fastllm.{alias.name}", id(node) in hidden
            else:
                yield node, module, id(node) in hidden


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in LAYERS, f"{room} has no layer: give it one here and in docs/design.md"
    for _, module, hidden in imports(path):
        if not module.startswith("fastllm"):
            continue
        target = module.split(".")[1] if "." in module else "__init__"
        if target in (room, "__init__", "__version__"):
            continue
        assert not hidden, f"{name_of(path)} imports {module} inside a function"
        mine, theirs = LAYERS[room], LAYERS[target]
        order = ORDERED.get(mine, [])
        below = theirs < mine or (target in order and room in order and order.index(target) < order.index(room))
        assert below, f"{name_of(path)} (layer {mine}) imports {module} (layer {theirs})"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_foreign_library_has_one_place(path: Path) -> None:
    for _, module, _ in imports(path):
        places = ONE_PLACE.get(module.split(".")[0])
        assert places is None or name_of(path).startswith(places), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 600, f"{name_of(path)} is longer than 600 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{name_of(path)}: {node.name} has {length} lines"


def test_no_cycles() -> None:
    """Modules import each other in one direction only, TYPE_CHECKING included."""
    modules = {
        "fastllm." + name_of(p).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): p for p in FILES
    }
    graph = {
        m: {t for _, t, _ in imports(p) if t in modules and t != m}
        for m, p in modules.items()
        if m != "fastllm.__init__"
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*above, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for _, module, _ in imports(path):
        assert module.split(".")[0] not in {"pickle", "shelve", "marshal", "dill"}, f"{name_of(path)} imports {module}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile"}, f"{name_of(path)} calls {node.func.id}"
