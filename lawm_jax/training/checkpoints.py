"""Checkpoints: everything that an interrupted run needs to continue bit for bit."""

import json
import os
import warnings

import jax
import orbax.checkpoint as ocp
from etils import epath


class Checkpoints:
    """Saves and restores a run's state and its data iterator, asynchronously.

    The state is a tree of arrays; PRNG keys are stored as their raw data.
    """

    def __init__(self, workdir, keep=3, write=True):
        """Opens WORKDIR/checkpoints.

        Args:
          workdir: folder of the run.
          keep: how many of the newest steps stay.
          write: whether this is the run itself, which makes the folder, removes what a killed save
            left and sets damaged checkpoints aside. A reader may come while the run goes on: it
            changes nothing.
        """
        self.write = write
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=write, cleanup_tmp_directories=write
        )
        self.folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self):
        """The newest saved step, or None."""
        return self.manager.latest_step()

    def parts(self, step):
        """Names the top-level parameters that a checkpoint holds, e.g. {"inverse", "predictor"}.

        Empty where the checkpoint is damaged.
        """
        path = epath.Path(self.folder) / str(step) / "params"
        try:
            return set(ocp.StandardCheckpointHandler().metadata(path).tree)
        except Exception:  # a damaged file can raise anything
            return set()

    def save(self, step, state, data=None, wait=False):
        """Saves after `step` steps; returns at once unless `wait`.

        Args:
          step: number of steps done.
          state: {"params": ..., and all else}; parameters are an item of their own, so that
            `lawm.load` reads nothing else.
          data: iterator from `clips`, or None; its state is the same on all processes.
          wait: whether to return only when the checkpoint is complete.
        """
        rest = {key: value for key, value in state.items() if key != "params"}
        items = {"params": ocp.args.StandardSave(state["params"])}
        if rest:
            items["rest"] = ocp.args.StandardSave(_raw(rest))
        if data is not None:
            items["data"] = ocp.args.JsonSave(data.get_state())
        self.manager.save(step, args=ocp.args.Composite(**items), force=True)
        if wait:
            self.manager.wait_until_finished()

    def restore(self, like, data=None, step=None):
        """Restores the newest checkpoint that can be read.

        A newer one that cannot gets a warning, and the run sets it aside as STEP.damaged.

        Args:
          like: a tree of jax.ShapeDtypeStruct with shardings: the state, or its "params" alone.
          data: iterator from `clips` whose position is set, or None.
          step: restore this step and no other.

        Returns:
          (step, state), or None where there is no checkpoint.

        Raises:
          ValueError: there are checkpoints and none can be read, or not the step asked for.
        """
        rest = {key: value for key, value in like.items() if key != "params"}
        problems = {}
        steps = sorted(self.manager.all_steps())[::-1] if step is None else [step]
        for step in steps:
            items = {"params": ocp.args.StandardRestore(like["params"])}
            if rest:
                items["rest"] = ocp.args.StandardRestore(_raw(rest))
            if data is not None:
                items["data"] = ocp.args.JsonRestore()
            try:
                read = self.manager.restore(step, args=ocp.args.Composite(**items))
                if data is not None:
                    data.set_state(read["data"])
            except Exception as error:  # a damaged file can raise anything
                problems[step] = f"step {step}: {type(error).__name__}: {str(error)[:200]}"
                warnings.warn(f"{self.folder}: can't read {problems[step]}", stacklevel=2)
                continue
            if self.write:
                self._set_aside(problems)
            return step, {"params": read["params"]} | (_typed(read["rest"], rest) if rest else {})
        if problems:
            text = "; ".join(problems.values())
            raise ValueError(f"{self.folder}: no checkpoint can be read: {text}")
        return None

    def _set_aside(self, steps):
        if jax.process_index() == 0:
            for step in steps:
                path = os.path.join(self.folder, str(step))
                os.rename(path, f"{path}.damaged")
        if steps:
            self.manager.reload()

    def close(self):
        """Waits for running saves and closes."""
        self.manager.wait_until_finished()
        self.manager.close()


def _is_key(x):
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(tree):
    """Replaces typed PRNG keys by their data, of arrays and of shapes alike."""

    def raw(x):
        if not _is_key(x):
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            data = jax.eval_shape(jax.random.key_data, x)
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)
        return jax.random.key_data(x)

    return jax.tree.map(raw, tree)


def _typed(tree, like):
    return jax.tree.map(
        lambda x, shape: jax.random.wrap_key_data(x) if _is_key(shape) else x, tree, like
    )


def newest(workdir):
    """Returns the newest step that a run has saved; FileNotFoundError where there is none."""
    store = Checkpoints(workdir, write=False)
    step = store.latest
    store.close()
    if step is None:
        raise FileNotFoundError(f"{store.folder}: no checkpoint here")
    return step


def write_config(workdir, text):
    """Writes WORKDIR/config.json, whole or not at all."""
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, "config.json")
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.replace(path + ".tmp", path)


def read_config(workdir):
    """Reads WORKDIR/config.json; FileNotFoundError says what was expected."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: not found; expected the folder of a training run")
    with open(path) as file:
        return json.load(file)
