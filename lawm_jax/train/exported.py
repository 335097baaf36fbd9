"""Models as plain files in the layout of the Hugging Face Hub: shipped, or exported by users.

    F/config.json        the run's config, without the paths of its data
    F/model.safetensors  the trained parameters, and the step in its metadata
    F/prior.safetensors  the learned prior, if the run has one
    F/README.md          the model card
    F/controller/NAME/   config.json and model.safetensors of each controller

A folder like this stands in for that of a run wherever a trained model is read.
"""

import contextlib
import filecmp
import os
import pathlib
import re
import shutil
import sys
import warnings

import jax
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from lawm_jax.data import paths
from lawm_jax.train import rundir

SHIPPED = {"nano": pathlib.Path(__file__).parents[1] / "assets" / "nano"}
CONFIG = "config.json"
FILES = [CONFIG, "*.safetensors", f"*/{CONFIG}", "README.md"]  # files of an exported model


class Exported:
    """Reads the parameters of an exported model, with the methods of `Checkpoints` for readers."""

    def __init__(self, folder):
        """Opens FOLDER/model.safetensors.

        Raises:
          ValueError: the file is damaged, or was not written by `save_pretrained`.
        """
        self.folder, self.opened = rundir.weights(folder), contextlib.ExitStack()
        self.file = self.opened.enter_context(paths.local_copy(self.folder))
        try:
            with safetensors.safe_open(self.file, "numpy") as file:
                self.names = list(file.keys())
                self.latest = int((file.metadata() or {})["step"])
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: expected parameters written by `save_pretrained`, got {error!r}"
            ) from error

    def parts(self, step):
        """Returns the names of the top-level parameters, e.g. {"inverse", "predictor"}."""
        del step
        return {name.split("/")[0] for name in self.names}

    def shapes(self, step):
        """Returns the parameters as a tree of jax.ShapeDtypeStruct."""
        del step
        with safetensors.safe_open(self.file, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in self.names}
        shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in arrays.items()}
        return unflatten_dict(shapes, sep="/")

    def restore(self, like, step=None):
        """Returns (step, {"params": parameters}), placed as in `like`; see `Checkpoints.restore`.

        Raises:
          ValueError: the model has another step, or parameters with other names or shapes.
        """
        if step not in (None, self.latest):
            raise ValueError(f"{self.folder}: expected step {step}, got only step {self.latest}")
        targets = flatten_dict(like["params"], sep="/")
        arrays = safetensors.numpy.load_file(self.file)
        expected = {f"{name} {list(x.shape)}" for name, x in targets.items()}
        got = {f"{name} {list(x.shape)}" for name, x in arrays.items()}
        if expected != got:
            missing, extra = sorted(expected - got)[:3], sorted(got - expected)[:3]
            raise ValueError(
                f"{self.folder}: expected the parameters of its {CONFIG}; missing: "
                f"{', '.join(missing) or 'none'}; unexpected: {', '.join(extra) or 'none'}"
            )
        placed = {name: _place(x, targets[name]) for name, x in arrays.items()}
        return self.latest, {"params": unflatten_dict(placed, sep="/")}

    def close(self):
        """Removes the copy of a file in a bucket."""
        self.opened.close()


def _place(x, like):
    """Returns an array that every process holds in full, in the dtype and sharding of `like`."""
    x = x.astype(like.dtype)
    return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])


def find(name):
    """Returns the folder of a model.

    Args:
      name: the name of a model that ships with the package (`SHIPPED`; a folder of that name is
        ./NAME); or a folder, local or gs://BUCKET/FOLDER; or "ORGANIZATION/NAME" on the Hugging
        Face Hub, which is downloaded once. If several fit, the first in this order.

    Raises:
      FileNotFoundError: it is none of these, or there is no network.
      ValueError, OSError, ImportError: of a URL, see `rundir.folder`.
    """
    if name in SHIPPED:
        return str(SHIPPED[name])
    folder = rundir.folder(name) if paths.is_url(name) else paths.expand(name)
    if paths.is_dir(folder):
        return folder
    if os.path.isfile(folder):
        raise FileNotFoundError(f"{folder}: expected the folder of a model, got a file")
    text = f"expected a run's folder, {' or '.join(SHIPPED)}, or ORGANIZATION/NAME on the Hugging "
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        raise FileNotFoundError(f"{folder}: not found; {text}Face Hub")
    import huggingface_hub

    print(f"{name}: no such folder; trying the Hugging Face Hub", file=sys.stderr, flush=True)
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=FILES)
    except Exception as error:  # several libraries: no network, unknown name, no access
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise FileNotFoundError(f"{name}: not found; {text}Face Hub, got {problem}") from error


def _differs(folder, other):
    """Returns whether a folder does not hold the same parameters as an exported model."""
    first, second = rundir.weights(folder), rundir.weights(other)
    return not os.path.isfile(first) or not filecmp.cmp(first, second, shallow=False)


def working_copy(workdir):
    """Returns the folder of a run or an exported model, to which results can be written.

    A model that ships with the package or is on the Hub is copied to ./NAME first.

    Args:
      workdir: as in `find`, but an existing folder comes first.
    """
    folder = paths.expand(workdir)
    if paths.is_url(folder):
        return find(folder)
    if os.path.isdir(folder):
        if workdir in SHIPPED and _differs(folder, SHIPPED[workdir]):
            warnings.warn(
                f"{os.path.abspath(folder)}: using this folder, which differs from the shipped "
                f"model {workdir}; delete it to use the shipped one",
                stacklevel=2,
            )
        return os.path.abspath(folder) if workdir in SHIPPED else folder
    source, copy = find(workdir), os.path.abspath(os.path.basename(str(workdir)))
    if not os.path.isdir(copy):
        shutil.copytree(source, copy)
        print(f"{workdir}: copied to {copy}; results are written there")
    return copy
