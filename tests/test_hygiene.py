"""Data from others never runs code: no pickles, no archives, no eval; and no TensorFlow."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDERS = "lawm_jax", "configs", "launch", "benchmarks"
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Names of modules that may not be imported, and of functions that may not be called.
MODULES = PICKLES | {"tensorflow"}
FUNCTIONS = {"eval", "exec", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}
METHODS = {"extract", "extractall", "unpack_archive", "read_pickle"}


def offences(text):
    """Lists what a source file does that it may not, as (line, what)."""
    tree, found, names = ast.parse(text), [], {}
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            names |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        else:
            continue
        wrong = [name for name in modules if name.split(".")[0] in MODULES]
        found += [(node.lineno, name) for name in wrong if name != "pickle" or not harmless(nodes)]
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func, names)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        text = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        hidden = called.split(".")[-1] in ("import_module", "__import__") and str(*text)
        wrong = (
            called.removeprefix("builtins.") in FUNCTIONS
            or called.split(".")[-1] in METHODS
            or options.get("allow_pickle", "False") != "False"
            or called == "torch.load"
            and options.get("weights_only") != "True"
            or hidden
            and hidden.split(".")[0] in MODULES
        )
        if wrong:
            found.append((node.lineno, ast.unparse(node)))
    return found


def harmless(nodes):
    """Says whether pickle is there for the error alone that torch.load raises."""
    names = [node for node in nodes if isinstance(node, ast.Name) and node.id == "pickle"]
    errors = [node for node in nodes if isinstance(node, ast.Attribute)]
    errors = [node for node in errors if ast.unparse(node) == "pickle.UnpicklingError"]
    return 0 < len(names) == len(errors)


def dotted(node, names):
    """Returns the name of what is called, with modules by their own names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def test_the_packages_source_runs_no_code_from_files_and_needs_no_tensorflow():
    assert len(FILES) > 30
    found = {path: offences(path.read_text(encoding="utf-8")) for path in FILES}
    assert {str(path): what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "bad",
    [f"import {name}" for name in sorted(PICKLES)]
    + [
        "from pickle import loads",
        "import dill as d",
        "import os, pickle",
        "import joblib.externals",
    ]
    + ["import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pickle.loads(x)"]
    + ["def f():\n    import marshal", "try:\n    from cloudpickle import *\nexcept OSError: pass"]
    + ["import importlib\nimportlib.import_module('pickle')", "__import__('shelve')"]
    + ["import numpy as np\nnp.load('a', allow_pickle=True)"]
    + ["from numpy import load as l\nl('a', allow_pickle=yes)"]
    + ["import pandas as pd\npd.read_pickle('a')"]
    + ["import torch\ntorch.load('a')", "import torch as t\nt.load('a', weights_only=False)"]
    + ["from torch import load\nload('a')", "import torch\ntorch.load('a', weights_only=safe)"]
    + ["import zipfile\nzipfile.ZipFile('a').extractall('b')"]
    + ["import tarfile\nwith tarfile.open('a') as f:\n    f.extract('b')"]
    + [
        "import shutil\nshutil.unpack_archive('a')",
        "from shutil import unpack_archive as u\nu('a')",
    ]
    + ["import yaml\nyaml.load('a', yaml.Loader)", "from yaml import unsafe_load as l\nl('a')"]
    + [
        "eval('1')",
        "def f(x):\n    return [exec(y) for y in x]",
        "import builtins\nbuiltins.eval(x)",
    ]
    + ["import tensorflow as tf", "import tensorflow.io", "from tensorflow import io"]
    + ["import importlib as i\ni.import_module('tensorflow.io')"],
)
def test_each_of_these_would_be_found(bad):
    assert len(offences(bad)) == 1


def test_what_only_looks_alike_is_left_alone():
    assert (
        offences(
            "import tensorflow_datasets, zipfile, yaml, importlib\n"
            "import numpy as np, torch\n"
            "np.load('a'), np.load('a', allow_pickle=False), torch.load('a', weights_only=True)\n"
            "yaml.safe_load('a'), model.eval(), importlib.import_module(name), picture.load()\n"
            "zipfile.ZipFile('a').read('b'), evaluate('c')\n"
            "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass\n"
        )
        == []
    )


READ = """
import sys
sys.modules["tensorflow"] = None  # hidden: importing it fails
import importlib, pkgutil, runpy
try:
    import tensorflow
except ImportError:
    print("hidden")
import lawm_jax.data
modules = [found.name for found in pkgutil.iter_modules(lawm_jax.data.__path__, "lawm_jax.data.")]
for name in modules:
    importlib.import_module(name)
print(len(modules))
from lawm_jax.data import pipeline
config = runpy.run_path("configs/lawm.py")["get_config"]("size=tiny")
batch = next(pipeline.clips(config))
print(*batch["video"].shape)
print(*(name for name in sys.modules if name.split(".")[0] == "tensorflow"))
"""


def test_every_data_module_is_imported_and_a_batch_read_where_tensorflow_is_missing():
    command = [sys.executable, "-c", READ]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    hidden, modules, shape, loaded = run.stdout.splitlines()
    files = [path for path in (ROOT / "lawm_jax" / "data").glob("*.py") if path.stem != "__init__"]
    assert hidden == "hidden" and int(modules) == len(files) >= 8
    assert shape == "8 4 64 64 3" and loaded == "tensorflow"  # which is None
