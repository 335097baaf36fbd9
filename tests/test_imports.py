"""Imports point one way, and importing the package is cheap."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "lawm_jax"
COMMANDS = {"train", "evaluate", "plan", "ingest", "study", "report", "aot", "play", "export"}
MAINS = {f"{name}.__main__" for name in COMMANDS}

# What a module may import of the package; the first name that fits counts, "x.*" fits all of x, and
# "*" everything.
ALLOWED = {
    "__main__": (),
    "latents": (),
    "nn.rope": (),
    "nn.splash": (),
    "nn.cudnn": (),
    "nn.blocks": ("nn.rope", "nn.splash", "nn.cudnn"),
    "nn.pretrained": ("nn.*", "data.metadata", "data.paths"),
    "nn.perceptual": ("nn.*",),
    "nn.*": ("nn.blocks", "nn.rope"),
    "world_model": ("nn.*", "latents"),
    "data.*": ("data.*",),
    "envs.*": ("envs.*", "data.poses", "data.mp4"),
    "train.rundir": ("data.metadata", "data.paths"),
    "train.command": ("data.settings",),
    "train.flags": ("train.command",),
    "train.lines": ("data.paths", "train.rundir"),
    "train.logs": ("data.paths", "train.lines", "train.progress", "train.rundir"),
    "train.exported": ("data.paths", "train.rundir"),
    "train.checkpoints": ("data.paths", "train.exported", "train.rundir"),
    "train.sharing": ("data.catalog", "data.mini", "data.paths", "train.*"),
    "train.models": (
        "latents",
        "world_model",
        "nn.prior",
        "data.catalog",
        "data.paths",
        "train.checkpoints",
        "train.exported",
        "train.rundir",
        "train.objectives",
        "train.sharding",
    ),
    "train.objectives": (
        "world_model",
        "latents",
        "nn.perceptual",
        "data.*",
        "train.checkpoints",
        "train.exported",
        "train.rundir",
    ),
    "train.step": ("world_model", "train.accumulation", "train.optim", "train.objectives"),
    "train.held_out": ("data.pipeline",),
    "train.resume": ("data.catalog", "data.paths", "train.rundir", "train.sharding"),
    "train.loop": ("world_model", "data.*", "train.*"),
    "train.*": (),
    "evaluate.tables": (),
    "evaluate.row_names": (),
    "evaluate.metrics": ("data.poses",),
    "evaluate.figures": ("data.mp4", "evaluate.row_names"),
    "evaluate.batched": ("world_model", "train.sharding"),
    "evaluate.controllers": ("configs", "nn.controller", "train.*", "evaluate.batched"),
    "evaluate.run": ("data.*", "train.*", "evaluate.*"),
    "evaluate.*": ("world_model", "latents", "nn.*", "data.*", "evaluate.*"),
    "plan.planners": (),
    "plan.columns": ("evaluate.row_names", "evaluate.tables", "evaluate.verdicts"),
    "plan.search": ("world_model", "train.cpu", "plan.planners"),
    "plan.policy": ("evaluate.batched", "plan.search"),
    "plan.baselines": ("evaluate.row_names",),
    "plan.protocols": (),
    "plan.listed": ("data.*", "evaluate.clips"),
    "plan.tasks": (
        "data.poses",
        "evaluate.*",
        "plan.search",
        "plan.baselines",
        "plan.protocols",
    ),
    "plan.run": ("latents", "data.*", "train.*", "evaluate.*", "plan.*"),
    "plan.closed_loop": ("envs.*", "evaluate.*", "plan.search", "plan.tasks"),
    "ingest.plans": ("data.*",),
    "ingest.folder": ("data.metadata",),
    "ingest.readers": ("data.*", "ingest.folder"),
    "ingest.summary": ("data.records", "data.words", "ingest.folder"),
    "ingest.shards": ("data.paths", "ingest.*"),
    "ingest.states": ("world_model", "data.records", "train.sharding"),
    "ingest.run": ("data.*", "ingest.*"),
    "report.page": (),
    "report.figures": ("evaluate.figures",),
    "report.*": (
        "report.*",
        "data.paths",
        "data.words",
        "evaluate.*",
        "plan.columns",
        "train.rundir",
    ),
    "export.arrays": (),
    "export.lary": ("data.paths", "evaluate.probing"),
    "export.run": ("latents", "data.*", "train.*", "evaluate.batched", "export.*"),
    "study.commands": ("data.paths", "data.settings", "world_model"),
    "study.runner": ("data.paths", "data.words", "train.rundir"),
    "study.cases": ("data.*", "evaluate.run", "study.*"),
    "study.measures": ("data.catalog", "data.paths", "evaluate.*", "train.*"),
    "study.rules": ("evaluate.*", "study.*"),
    "study.*": (
        "data.paths",
        "data.words",
        "evaluate.*",
        "report.figures",
        "train.rundir",
        "study.*",
    ),
    "aot.flops": (),
    "aot.targets": ("aot.flops",),
    "aot.results": ("data.paths", "data.words"),
    "aot.analysis": ("latents", "train.*", "aot.flops"),
    "aot.run": ("data.*", "aot.*"),
    "play.*": ("*",),
}


def modules():
    """Maps the name of each module within the package to its syntax tree."""
    files = [path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts]
    names = [path.relative_to(PACKAGE).with_suffix("").parts for path in files]
    names = [".".join(part for part in name if part != "__init__") for name in names]
    return dict(zip(names, (ast.parse(path.read_text()) for path in files), strict=True))


MODULES = modules()


def imports(tree):
    """Lists the modules of the package that a tree imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {name for name in inner if name.removeprefix("lawm_jax.") in MODULES}
            found |= inside | ({node.module} if inner - inside else set())
    return {name.removeprefix("lawm_jax.") for name in found if name.startswith("lawm_jax.")}


def fits(name, pattern):
    return name == pattern or pattern.endswith("*") and name.startswith(pattern[:-1])


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {""}))
def test_a_module_imports_only_what_the_layout_allows(name):
    got = imports(MODULES[name])
    if name in MAINS:
        assert got.isdisjoint(MAINS)
        return
    if "." not in name and (PACKAGE / name).is_dir():  # a folder's __init__ holds a docstring
        assert got == set()
        return
    rules = [allowed for pattern, allowed in ALLOWED.items() if fits(name, pattern)]
    assert rules, f"lawm_jax.{name} is new: say in ALLOWED what it may import"
    wrong = {other for other in got if not any(fits(other, pattern) for pattern in rules[0])}
    assert wrong == set()


def test_the_layouts_main_modules_are_there():
    expected = {"world_model", "latents", "nn.pretrained", "nn.blocks", "nn.inverse"}
    expected |= {"nn.predictor", "train.models", "train.loop", "data.pipeline"}
    assert expected | MAINS <= MODULES.keys()
    assert "latents" in imports(MODULES["world_model"])  # the search for imports finds some
    assert "data.pipeline" in imports(MODULES["train.loop"])


def test_the_package_is_a_floor_of_18_names():
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(names) <= 18 and {"world_model.py", "latents.py", *COMMANDS} <= names


def test_the_package_itself_imports_nothing_at_once():
    assert imports(MODULES[""]) == set()


def test_configs_import_nothing_of_the_package_but_each_other():
    files = list((ROOT / "configs").glob("*.py"))
    assert files
    for path in files:
        names = imports(ast.parse(path.read_text()))
        assert all(name == "configs" or name.startswith("configs.") for name in names)


def run(code):
    """Runs code in a fresh interpreter: the lines that it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()


HEAVY = "grain orbax av tensorflow torch matplotlib ml_collections huggingface_hub tensorboardX"
LOADED = f"import sys; print(*(n for n in {HEAVY.split()} if n in sys.modules), sep='\\n')"


def test_importing_the_package_takes_less_than_2_seconds_and_no_heavy_library():
    clock = "import time; print(time.process_time());"
    seconds, *loaded = run(f"import lawm_jax as lawm; dir(lawm); {clock} {LOADED}")
    assert float(seconds) < 2
    assert loaded == []


def test_the_model_needs_no_data_checkpoint_or_figure_library():
    assert run(f"import lawm_jax as lawm; lawm.build, lawm.loss, lawm.make_mesh; {LOADED}") == []


def test_the_training_loop_needs_no_tensorflow_no_torch_and_no_figures():
    loaded = run(
        "import sys; sys.modules |= dict.fromkeys(['tensorflow', 'torch', 'matplotlib']);"  # hidden
        "from lawm_jax.train import loop, checkpoints, logs; from lawm_jax.data import pipeline;"
        f"import grain, grain.checkpoint, tensorboardX; {LOADED}"
    )
    assert "grain" in loaded and "orbax" in loaded
