import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recblr

ROOT = Path(recblr.__file__).parent
EVERYWHERE = {"data", "ops", "models", "evaluation", "run_folder"}
MAY_IMPORT = {
    "run_folder": set(),
    "ops": {"ops"},
    "data": {"data"},
    "models": {"models", "ops", "data.batch"},
    "evaluation": {"evaluation", "ops", "data.batch"},
    "training": EVERYWHERE | {"training"},
    "inference": EVERYWHERE | {"inference"},
    "report": {"report", "evaluation", "run_folder"},
    "__init__": set(),
}
FILES = sorted(ROOT.rglob("*.py"))
# Reading data and results, and the operations, need no trainer: they start fast.
LIGHT = [
    ".".join(("recblr", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for file in FILES
    if file.relative_to(ROOT).parts[0] in ("data", "ops", "report", "run_folder.py")
    and file.name != "datamodule.py"
]


def own_imports(source, package):
    """Dotted names under `recblr` that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("recblr").lstrip(".") for name in names if is_own(name))


def is_own(name):
    return name == "recblr" or name.startswith("recblr.")


def violations(source, path):
    """Imports of the module at `path`, relative to the package, that go against the flow."""
    package = ".".join(("recblr", *path.parent.parts))
    allowed = MAY_IMPORT[path.with_suffix("").parts[0]]
    return [
        name
        for name in own_imports(source, package)
        if not any(name == part or name.startswith(f"{part}.") for part in allowed)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_flow_of_data(file):
    assert not violations(file.read_text(encoding="utf-8"), file.relative_to(ROOT))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/rank.py", "from recblr.data.batch import SequenceBatch"),
        ("ops/rank.py", "from ..data import batch"),
        ("models/recblr.py", "from recblr.data.loader import PackedLoader"),
        ("models/recblr.py", "from recblr.data import sequences"),
        ("models/recblr.py", "def late():\n    import recblr.training.module"),
        ("report/tables.py", "import recblr.data.batch, json"),
        ("run_folder.py", "import recblr"),
    ],
)
def test_an_import_against_the_flow_is_found(path, source):
    assert violations(source, Path(path))


def test_an_import_along_the_flow_is_not_reported():
    source = "from recblr.data import batch\nimport recblr.ops.rank\nfrom ..ops.bd_lru import cpu"
    assert not violations(source, Path("models/recblr.py"))


def test_data_ops_and_report_import_no_lightning():
    assert "recblr.data.readers" in LIGHT and "recblr.report.tables" in LIGHT
    code = f"import sys, {', '.join(LIGHT)}\n"
    code += "print([m for m in sys.modules if m.split('.')[0] in ('lightning', 'wandb', 'hydra')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
