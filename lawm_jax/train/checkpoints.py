"""Checkpoints: everything that an interrupted run needs to continue bit for bit."""

import os
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lawm_jax.train import rundir


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
        self.write = self.unread = write
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=write, cleanup_tmp_directories=write
        )
        workdir = rundir.folder(workdir) if write else workdir
        self.folder = os.path.abspath(rundir.checkpoints(workdir))
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

        The first checkpoint is waited for, and a part of it read again: a run must not go on for
        days without one.

        Args:
          step: number of steps done.
          state: {"params": ..., and all else}; parameters are an item of their own, so that
            `lawm.load` reads nothing else.
          data: iterator from `clips`, or None; its state is the same on all processes.
          wait: whether to return only when the checkpoint is complete.

        Raises:
          OSError: the first checkpoint can't be read again.
        """
        rest = {key: value for key, value in state.items() if key != "params"}
        items = {"params": ocp.args.StandardSave(state["params"])}
        if rest:
            items["rest"] = ocp.args.StandardSave(_raw(rest))
        if data is not None:
            items["data"] = ocp.args.JsonSave(data.get_state())
        self.manager.save(step, args=ocp.args.Composite(**items), force=True)
        if wait or self.unread:
            self.manager.wait_until_finished()
        if self.unread and jax.process_index() == 0:
            self._read_again(step, state["params"])
        self.unread = False

    def _read_again(self, step, params):
        """Reads the smallest array of a checkpoint and compares it with what was saved."""
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        path, saved = min(leaves, key=lambda leaf: leaf[1].size)
        item = restore_args = None
        for entry in reversed(path):
            item = {entry.key: 0 if item is None else item}
            restore_args = {
                entry.key: ocp.RestoreArgs(np.ndarray) if restore_args is None else restore_args
            }
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        place = epath.Path(self.folder) / str(step) / "params"
        try:
            found = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(place, args=args))
            same = len(found) == 1 and np.array_equal(found[0], np.asarray(saved), equal_nan=True)
        except Exception as error:  # of Orbax and TensorStore: anything
            raise OSError(f"{place}: was saved, but can't be read again: {error}") from error
        if not same:
            raise OSError(f"{place}: was saved, but other values were read again")

    def restore(self, like, data=None, step=None):
        """Restores the newest checkpoint that can be read.

        A newer one that cannot gets a warning, and the run sets it aside as STEP.damaged. All
        processes of a run take the same one: what one of them can't read none does.

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
        while (step := self._first(steps)) is not None:
            steps = [x for x in steps if x < step]
            read, problem = None, "another process can't read it"
            try:
                read = self._read(step, like["params"], rest, data is not None)
            except (ImportError, NameError, MemoryError):
                raise
            except Exception as error:  # a damaged file can raise anything
                if "RESOURCE_EXHAUSTED" in str(error):  # but memory is not the file's
                    raise
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            if not self._all(read is not None):
                problems[step] = f"step {step}: {problem}"
                warnings.warn(f"{self.folder}: can't read {problems[step]}", stacklevel=2)
                continue
            if data is not None:
                data.set_state(read["data"])
            if self.write:
                self._set_aside(problems)
            return step, {"params": read["params"]} | (_typed(read["rest"], rest) if rest else {})
        if problems:
            text = "; ".join(problems.values())
            raise ValueError(f"{self.folder}: no checkpoint can be read: {text}")
        return None

    def _read(self, step, params, rest, data):
        """Reads a checkpoint's items without waiting for other processes.

        The manager's `restore` ends in a barrier, where a process whose read succeeded would wait
        for one whose read failed, and then take its next barrier, of another step, for this one.
        """
        place = epath.Path(self.folder) / str(step)
        handler = ocp.StandardCheckpointHandler()
        read = {"params": handler.restore(place / "params", args=ocp.args.StandardRestore(params))}
        if rest:
            args = ocp.args.StandardRestore(_raw(rest))
            read["rest"] = handler.restore(place / "rest", args=args)
        if data:
            read["data"] = ocp.JsonCheckpointHandler().restore(place / "data")
            if type(read["data"].get("examples")) is not int:
                raise ValueError(f"data: expected a number of examples, got {read['data']}")
        return read

    def _first(self, steps):
        """Returns the first of some steps, or None; in a run, what process 0 says."""
        first = steps[0] if steps else -1
        if self.write and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            first = int(multihost_utils.broadcast_one_to_all(np.int32(first)))
        return None if first < 0 else first

    def _all(self, ok):
        """Says whether something holds; in a run, on all of its processes."""
        return agreed(ok) if self.write else ok

    def _set_aside(self, steps):
        if jax.process_index() == 0:
            for step in steps:
                path = os.path.join(self.folder, str(step))
                os.rename(path, f"{path}.damaged")
        agreed(True)  # none looks before they are gone
        if steps:
            self.manager.reload()

    def close(self):
        """Waits for running saves and closes."""
        self.manager.wait_until_finished()
        self.manager.close()


def agreed(ok):
    """Says whether something holds on all processes; each of them has to ask."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(ok)).all())


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
        raise FileNotFoundError(f"{store.folder}: no checkpoint here, the run saved none")
    return step
