"""The notebooks of colab/, as a newcomer runs them, with few steps."""

import ast
import importlib
import re

import pytest
from conftest import OPTIMIZED, ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = ROOT / "colab"
TINY_ENCODER = dict(ENCODER="vjepa2_tiny", WEIGHTS="", SIZE="64", FRAMES="8", DTYPE="float32")
# Name -> settings for a short run; the numbers of images and of videos that it shows; what it
# prints, as regular expressions. Two workers get the first two and the next two: equally long.
RUNS = {
    "quickstart": (
        dict(STEPS="2"),
        (5, 2),
        [
            r"step 2/2 +loss [\d.]+.*clips/s",
            r"prediction +one-step error relative to copying: .*nano 0\.\d+",
        ],
    ),
    "vjepa2": (
        dict(STEPS="2", FILMS="panda/train/000[0-3].mp4") | TINY_ENCODER,
        (1, 0),
        [
            "RANDOM WEIGHTS",
            r"\d+ records",
            r"step 2/2 +loss",
            r"prediction +\d+ episodes? (is|are) too few to judge; 8 needed; one-step\s+error",
        ],
    ),
    "planning": (
        dict(STEPS="2", EPISODES="2"),
        (3, 1),
        ["at the imagined end", r"step 2/2 +loss", r"(?s)(\n +noisy +0\.\d+ \[.*){2}"],
    ),
    "own_video": (
        dict(STEPS="2"),
        (4, 1),
        [
            r"step 2/2 +loss",
            r"skipped files: 1\n.*broken.mp4: ",
            r"prediction +\d+ episodes? (is|are) too few to judge; 8 needed; one-step\s+error",
        ],
    ),
    "play": (dict(STEPS="2"), (1, 1), [r"ready after", r"the page: http://localhost:\d+"]),
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=RUNS)
def notebook(request):
    return read(request.param)


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == RUNS.keys()


@pytest.mark.slow  # .ci/run runs it, and nox -s colab with Colab's packages
@pytest.mark.parametrize("name", RUNS)
def test_a_notebook_runs_from_the_first_cell_to_the_last(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", OPTIMIZED)  # as on a laptop
    notebook, (settings, pictures, expected) = read(name), RUNS[name]
    (given,) = (c for c in code(notebook) if "parameters" in c.metadata.get("tags", ()))
    given.source += f"\nos.environ |= {settings | dict(WORK=str(tmp_path))!r}"
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()  # raises where a cell does
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    for pattern in expected:
        assert re.search(pattern, text), (pattern, text)
    shown = [
        output.data
        for output in outputs
        if output.output_type in ("display_data", "execute_result")
    ]
    images = sum("image/png" in data for data in shown)
    html = "".join(data.get("text/html", "") for data in shown)
    acted = "m from the goal at the start" in text  # where the simulator is installed
    assert (images, html.count("<video") - acted) == pictures
    assert html.count("<iframe") == (name == "play")


def test_a_notebook_holds_no_outputs_and_no_logic(notebook):
    for cell in code(notebook):
        assert not cell.outputs and cell.execution_count is None
        assert not re.search(r"\b(def|class|for|while|lambda)\b", _uncommented(cell.source))
        assert len(cell.source.splitlines()) <= 20


def _uncommented(source):
    """Returns a cell without comments and the texts that it shows."""
    return re.sub(r'#.*|"[^"\n]*"', "", source)


def test_the_notebooks_share_their_first_cell():
    first = {code(read(name))[0].source for name in RUNS}
    assert len(first) == 1 and "cpu.accelerator()" in first.pop()


def test_notebooks_are_written_as_nbformat_writes_them(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    nbformat.validate(notebook)
    texts = {path.read_text(encoding="utf-8") for path in FOLDER.glob("*.ipynb")}
    assert nbformat.writes(notebook) + "\n" in texts


def test_a_notebook_names_files_that_are_there(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    links = re.findall(r"\]\(([\w./]+)\)", text)
    assert len(links) >= 3
    for path in links:
        assert (FOLDER / path).exists(), path
    for config in re.findall(r"--(?:config|encoder) (\S+?):", text):
        assert (ROOT / "configs" / config).exists(), config


def test_what_a_notebook_uses_of_the_package_is_there(notebook):
    python = [cell.source for cell in code(notebook) if not cell.source.startswith("%%")]
    lines = "\n".join(python).split("\n")
    lines = [re.sub(r"^( *)%.*", r"\1pass", line) for line in lines]
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
    assert {"lawm_jax.play.notebook", "lawm_jax.train.cpu"} <= {path for path, _ in used}
    for path, name in used:
        assert hasattr(importlib.import_module(path), name), f"{path}.{name}"
