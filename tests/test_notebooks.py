"""The notebooks run from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in conftest
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "of the ceiling after 3 epochs" in printed and "state of one user: 4096 bytes" in printed
    difference = float(re.findall(r"largest difference of a score: (\S+);", printed)[0])
    assert difference < 1e-5
    last = notebook.cells[-1].outputs[-1].data["text/plain"]
    assert "film9" in last and "model" in last
