"""Checkpoints: everything that an interrupted run needs to resume exactly."""

import os
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lawm_jax.data import paths
from lawm_jax.train import exported, rundir

# Codes in the messages of errors that do not mean that a file is damaged.
PASSING = (
    "RESOURCE_EXHAUSTED",  # out of memory
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
)


class Checkpoints:
    """Saves and restores the state and data position of a run, asynchronously.

    The state is a tree of arrays; typed PRNG keys are stored as raw key data.
    """

    def __init__(self, workdir, write=True, keep_period=None):
        """Opens WORKDIR/checkpoints.

        Args:
          workdir: folder of the run.
          write: True for the run itself: creates the folder, deletes incomplete checkpoints and
            renames damaged ones, see `restore`. False changes nothing, for readers while the run
            continues.
          keep_period: also keeps every checkpoint at a multiple of this step; None or 0 for none.
        """
        self.write = self.unread = write
        options = ocp.CheckpointManagerOptions(
            max_to_keep=3,  # the most recent
            keep_period=keep_period or None,
            create=write,
            cleanup_tmp_directories=write,
        )
        self.folder = rundir.checkpoints(rundir.folder(workdir) if write else workdir)
        if not paths.is_url(self.folder):
            self.folder = os.path.abspath(self.folder)
        self.damaged = set()  # steps in a bucket, where folders can't be renamed
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self):
        """Step of the newest checkpoint, or None."""
        return self.manager.latest_step()

    def parts(self, step):
        """Returns the names of a checkpoint's top-level parameters, e.g. {"inverse", "predictor"}.

        The set is empty if the checkpoint is damaged.
        """
        try:
            return set(self.shapes(step))
        except ValueError:
            return set()

    def shapes(self, step):
        """Returns the parameters of a checkpoint as a tree of jax.ShapeDtypeStruct.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        path = epath.Path(self.folder) / str(step) / "params"
        try:
            tree = ocp.StandardCheckpointHandler().metadata(path).tree
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path}: expected parameters, got {error!r}") from error

    def save(self, step, state, data=None, wait=False):
        """Saves a checkpoint asynchronously, or synchronously with `wait`.

        The first checkpoint is always synchronous, and its smallest array is read back: a run must
        not continue for days without a readable checkpoint.

        Args:
          step: number of completed steps.
          state: {"params": ..., and other keys}; "params" is stored as a separate item, so that
            `lawm.load` can read it alone.
          data: iterator from `clips`, or None; its position is the same on all processes.
          wait: whether to return only once the checkpoint is complete.

        Raises:
          OSError: the first checkpoint cannot be read back.
        """
        if step in self.damaged:
            self.manager.wait_until_finished()
            self.manager.delete(step)
            self.damaged.remove(step)
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
        """Reads the smallest array of a checkpoint and compares it with the saved one."""
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
            values = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(place, args=args))
            same = len(values) == 1 and np.array_equal(values[0], np.asarray(saved), equal_nan=True)
        except Exception as error:  # Orbax and TensorStore raise many types
            raise OSError(f"{place}: was saved, but can't be read back: {error}") from error
        if not same:
            raise OSError(f"{place}: was saved, but different values were read back")

    def restore(self, like, data=None, step=None):
        """Restores the newest readable checkpoint.

        Skips unreadable checkpoints with a warning, and renames them to STEP.damaged if `write`. In
        a bucket, where folders can't be renamed, they stay until that step is saved again.
        All processes of a run restore the same step, one that all of them can read.

        Args:
          like: tree of jax.ShapeDtypeStruct with shardings: the state, or only its "params".
          data: iterator from `clips` whose position to set, or None.
          step: the only step to try; None tries all, newest first.

        Returns:
          (step, state), or None if there are no checkpoints.

        Raises:
          ValueError: there are checkpoints but none is readable, or `step` is not.
          Exception: any other type: out of memory, no network or no permission.
        """
        rest = {key: value for key, value in like.items() if key != "params"}
        problems = {}
        steps = sorted(self.manager.all_steps())[::-1] if step is None else [step]
        while (step := self._same_first(steps)) is not None:
            steps = [x for x in steps if x < step]
            read, problem = None, "another process can't read it"
            try:
                read = self._read(step, like["params"], rest, data is not None)
            except (ImportError, NameError, MemoryError):
                raise
            except Exception as error:  # a damaged file can raise anything
                if not self._is_damage(error):
                    raise
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            if not self._on_all_processes(read is not None):
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
        """Reads the items of a checkpoint without synchronizing with other processes.

        The manager's `restore` ends in a barrier. If the read fails on one process, the others wait
        there, and mistake its next barrier, for another step, for this one.
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

    def _same_first(self, steps):
        """Returns the first step or None; in a run, that of process 0 on all processes."""
        first = steps[0] if steps else -1
        if self.write and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            first = int(multihost_utils.broadcast_one_to_all(np.int32(first)))
        return None if first < 0 else first

    def _on_all_processes(self, ok):
        """Returns `ok`; in a run, whether `ok` is true on all processes."""
        return all_agree(ok) if self.write else ok

    def _is_damage(self, error):
        """Returns whether an error means a damaged file; otherwise, a later try may succeed."""
        if paths.is_url(self.folder) and isinstance(error, OSError):
            return isinstance(error, FileNotFoundError)
        return not any(code in str(error) for code in PASSING)

    def _set_aside(self, steps):
        if paths.is_url(self.folder):
            self.damaged |= steps.keys()
            return
        if jax.process_index() == 0:
            for step in steps:
                path = os.path.join(self.folder, str(step))
                os.rename(path, f"{path}.damaged")
        all_agree(True)  # wait until process 0 has renamed them
        if steps:
            self.manager.reload()

    def close(self):
        """Waits for running saves and closes."""
        self.manager.wait_until_finished()
        self.manager.close()


def all_agree(ok):
    """Returns whether `ok` is true on all processes; all of them must call this function."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(ok)).all())


def _is_key(x):
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(tree):
    """Replaces typed PRNG keys with their data, in arrays and ShapeDtypeStructs."""

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


def reader(workdir):
    """Opens the checkpoints of a run, or the parameters of an exported model, to read them.

    Raises:
      FileNotFoundError: there are none.
      ValueError: an exported model's file is damaged.
    """
    if paths.exists(rundir.weights(workdir)):
        return exported.Exported(workdir)
    store = Checkpoints(workdir, write=False)
    if store.latest is None:
        store.close()
        raise FileNotFoundError(f"{store.folder}: no checkpoint found; the run has not saved one")
    return store


def newest(workdir):
    """Returns the step of a run's newest checkpoint; FileNotFoundError if there is none."""
    store = reader(workdir)
    store.close()
    return store.latest
