"""The folders of the package: who may import whom."""

import ast
from pathlib import Path

import allspark_hf


PACKAGE = Path(allspark_hf.__file__).parent
# A folder imports from itself and from those before it, so nothing goes in a circle, and nobody imports `cli`.
ORDER = ("utils", "models", "data", "methods", "evaluation", "inference", "figures", "export")
ORDER += ("publishing", "training", "studies", "demo", "benchmarks", "cli")
# The model's own push_to_hub, where this package is installed; the file also runs alone, as code of the Hub.
OPTIONAL = ("models/modeling_allspark.py", "publishing")
NOT_FROM = {"data": {"models"}, "evaluation": {"methods"}}  # neighbors that need not know each other


def imported_folders(path: Path):
    """Folders of the package that a file imports from, also inside functions."""
    package = ["allspark_hf", *path.parent.relative_to(PACKAGE).parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            modules = [[*base, *filter(None, (node.module or "").split("."))]]
        elif isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "allspark_hf":
                yield from [module[1]] if len(module) > 1 else [alias.name for alias in node.names]


def test_every_folder_has_its_place_and_says_what_belongs_there():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ORDER)
    for folder in folders:
        assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())), folder
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_flow_one_way():
    wrong = []
    for folder in ORDER:
        allowed = set(ORDER[: ORDER.index(folder) + 1]) - NOT_FROM.get(folder, set())
        for path in (PACKAGE / folder).rglob("*.py"):
            names = [name for name in imported_folders(path) if name not in allowed]
            file = path.relative_to(PACKAGE).as_posix()
            wrong += [f"{file} imports {name}" for name in names if (file, name) != OPTIONAL]
    assert not wrong, "\n".join(wrong)
