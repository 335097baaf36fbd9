"""The notebook of colab/, as a newcomer runs it, with few steps."""

import ast
import importlib
import pathlib
import re

import pytest
from conftest import OPTIMIZED

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "colab" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow  # nox -s colab runs it, with Colab's packages
def test_the_notebook_runs_from_the_first_cell_to_the_last(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", OPTIMIZED)  # as on a laptop
    (settings,) = (c for c in code(notebook) if "parameters" in c.metadata.get("tags", ()))
    settings.source = f"import os\nos.environ |= dict(WORK={str(tmp_path)!r}, STEPS='2', "
    settings.source += "CONTROLLER_STEPS='2', CLIPS='2')"
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()  # raises where a cell does
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"step 2/2 +loss [\d.]+.*clips/s", text)
    assert "panda, one step ahead" in text
    assert re.search(r"^ +noisy +0\.\d+ \[", text, re.M)  # the planner's table
    shown = [
        output.data
        for output in outputs
        if output.output_type in ("display_data", "execute_result")
    ]
    assert sum("image/png" in data for data in shown) == 2
    assert sum("<video" in data.get("text/html", "") for data in shown) == 4


def test_the_notebook_holds_no_outputs_and_no_logic(notebook):
    for cell in code(notebook):
        assert not cell.outputs and cell.execution_count is None
        assert not re.search(r"^\s*(def|class|for|while|lambda)\b", cell.source, re.M)
        assert len(cell.source.splitlines()) <= 20


def test_the_notebook_names_files_that_are_there(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    paths = re.findall(r"\.\./([\w./]+)", text)
    assert len(paths) >= 3
    for path in paths:
        assert (ROOT / path.rstrip(".")).exists(), path
    for config in re.findall(r"--config (\S+?):", text):
        assert (ROOT / "configs" / config).exists(), config


def test_what_the_notebook_uses_of_the_package_is_there(notebook):
    python = [cell.source for cell in code(notebook) if not cell.source.startswith("%%")]
    lines = "\n".join(python).split("\n")
    lines = [line for line in lines if not line.lstrip().startswith(("%", "!"))]
    tree, modules = ast.parse("\n".join(lines)), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found = {x.asname or x.name: f"{node.module}.{x.name}" for x in node.names}
        else:
            continue
        modules |= {name: path for name, path in found.items() if path.startswith("lawm_jax")}
    used = {
        (modules[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    }
    assert {"lawm_jax", "lawm_jax.evaluate.figures"} <= {path for path, _ in used}
    for path, name in used:
        assert hasattr(importlib.import_module(path), name), f"{path}.{name}"
