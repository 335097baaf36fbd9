"""The training run: builds and compiles the training step, runs the loop, resumes."""

import concurrent.futures
import contextlib
import json
import math
import os
import signal
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lawm_jax import world_model
from lawm_jax.train import (
    accumulation,
    checkpoints,
    cpu,
    exported,
    logs,
    models,
    objectives,
    optim,
    resume,
    rundir,
    sharding,
)
from lawm_jax.train.held_out import HeldOut
from lawm_jax.train.step import make_state, train_step


class Run:
    """Holds a run's model, mesh, frozen parameters and jitted training step.

    `Run.load` makes a run that trains on the devices of this machine. `Run.abstract` makes one with
    shapes in place of arrays, for devices that need not be attached: it can only be lowered.

    Attributes:
      mesh, model, objective, tx: the parts of the step.
      schedule: step -> fraction of the peak learning rates.
      accumulate: number of parts in which a batch is processed.
      batch: shapes of the arrays of a batch that the step uses.
      frozen: parameters that do not change: arrays, or shapes if the run is abstract.
      like: shapes of the state, with their shardings `shardings`.
      step: jitted function (frozen, state, batch) -> state, metrics.
    """

    @classmethod
    def load(cls, config, states=False):
        """Builds a run on this machine's devices and loads its frozen parameters; writes no files.

        Args:
          config: nested dict or ConfigDict.
          states: whether batches hold encoded states instead of video.
        """
        mesh = sharding.make_mesh(**config["mesh"])
        model, objective = world_model.build(config), objectives.named(config)
        video, trained = _video_shape(config, mesh), None
        if "model" in config:
            _, trained = models.load(config["model"], config["model_step"], controller="")
        frozen = objective.init_frozen(model, video, trained)
        return cls(config, mesh, model, video, sharding.distribute(mesh, frozen), states)

    @classmethod
    def abstract(cls, config, devices):
        """Builds a run with shapes in place of arrays, to compile the step; loads no weights.

        Args:
          config: nested dict or ConfigDict.
          devices: real devices, or those of a topology description.
        """
        mesh = sharding.make_mesh(**config["mesh"], devices=devices)
        model, video = world_model.build(config), _video_shape(config, mesh)
        frozen = jax.eval_shape(lambda: {"encoder": world_model.draw_encoder(model, video)})
        shardings = sharding.state_sharding(mesh, frozen)
        return cls(config, mesh, model, video, _shapes(frozen, shardings))

    def __init__(self, config, mesh, model, video, frozen, states=False):
        """Builds the step and the shapes of its arguments; used by `load` and `abstract`."""
        self.mesh, self.model, self.frozen = mesh, model, frozen
        self.objective = objectives.named(config)
        self.tx, schedule = optim.make(config["optim"], config["steps"])
        self.schedule = jax.jit(schedule)
        self.accumulate = _accumulate(config)
        s = world_model.state_shape(model, frozen["encoder"], video)
        cached = jax.ShapeDtypeStruct(s.shape, jnp.bfloat16)
        self.batch = {"states": cached} if states else {"video": video}
        if U := self.objective.actions(model):
            B, T, *_ = s.shape
            if T != video.shape[1]:
                raise ValueError(
                    f"encoder.repeat: expected True, so that each of {video.shape[1]} frames is a "
                    f"time step and one action leads to the next frame, got {T} time steps"
                )
            self.batch["actions"] = jax.ShapeDtypeStruct((B, T - 1, U), jnp.float32)
            self._actions = objectives.action_statistics(config)
        self._key = jax.random.key(config["seed"])
        ema = config["optim"].get("ema", 0.0)
        make = lambda key: make_state(model, self.tx, s, key, self.objective, ema)  # noqa: E731
        shapes = jax.eval_shape(make, self._key)
        self.shardings = sharding.state_sharding(mesh, shapes)
        self._make = jax.jit(make, out_shardings=self.shardings)
        self.like = _shapes(shapes, self.shardings)

        def step(frozen, state, batch):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for TPU kernels
                return train_step(
                    model, self.tx, frozen, state, batch, self.accumulate, self.objective, ema
                )

        self.step = jax.jit(step, donate_argnums=1, out_shardings=(self.shardings, None))

    def lower(self):
        """Lowers the step for the mesh's devices (jax.stages.Lowered)."""
        spread = sharding.batch_sharding(self.mesh)
        batch = _shapes(self.batch, jax.tree.map(lambda _: spread, self.batch))
        return self.step.lower(self.frozen, self.like, batch)

    def begin(self, data=None):
        """Initializes the state on the mesh, including the scale of real actions and targets.

        Args:
          data: iterator whose first batch is measured, if the objective requires it.
        """
        state = self._make(self._key)
        if "actions" not in self.batch:
            return state

        def standardise(params, frozen, actions, batch):
            def inputs():
                infer = lambda part: self.objective.inputs(self.model, frozen, part)  # noqa: E731
                if self.accumulate == 1:
                    return infer(batch)
                parts = accumulation.split(batch, self.accumulate)
                return jax.tree.map(accumulation.join, jax.lax.map(infer, parts))

            return self.objective.standardise(self.model, params, actions, inputs)

        batch = self.place(next(data)) if self.objective.measures_targets else None
        standardise = jax.jit(standardise, out_shardings=self.shardings["params"])
        return self.with_params(
            state, standardise(state["params"], self.frozen, self._actions, batch)
        )

    def with_params(self, state, params):
        """Returns an initial state with other parameters, from which their average also starts."""
        parts = {"params": params}
        if "raw" in state:  # other buffers: the step donates both
            parts["raw"] = jax.tree.map(jnp.copy, params)
        return state | parts

    def place(self, batch):
        """Transfers the arrays of a batch that the step uses to the mesh."""
        return sharding.place(self.mesh, {key: batch[key] for key in self.batch})

    @contextlib.contextmanager
    def compiling(self):
        """Compiles the step in a thread while the `with` body initializes or restores the state."""
        lowered = self.lower()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            options = cpu.options(self.mesh.devices.flat[0].platform)
            step = pool.submit(lowered.compile, options)
            yield
        self.step = step.result()


def _accumulate(config):
    return config["optim"].get("accumulate", 1)


def _video_shape(config, mesh):
    """Returns the shape of a batch of video; raises ValueError if the mesh does not divide it."""
    data, parts = config["data"], _accumulate(config)
    batch = sharding.batch_size(data, mesh.size)
    if batch % (mesh.size * parts):
        what = f" x optim.accumulate={parts}" if parts > 1 else ""
        raise ValueError(
            f"data.batch: expected a multiple of {mesh.size} devices{what}, got {batch}"
        )
    clip = (batch, data["frames"], data["size"], data["size"], 3)
    return jax.ShapeDtypeStruct(clip, jnp.uint8)


def _shapes(tree, shardings):
    """Returns a tree of jax.ShapeDtypeStructs with the given shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def fit(config, workdir, init_from=None, profile=0):
    """Trains a model, or resumes an interrupted run.

    Args:
      config: ConfigDict as in configs/: lawm.py, labelled.py, decoder.py, controller.py.
      workdir: folder of the run, local or gs://BUCKET/FOLDER, see `rundir`.
      init_from: folder of a run, or another model (see `exported.find`), whose parameters a new run
        starts from where names and shapes agree; a resumed run ignores it.
      profile: number of steps to trace, from the sixth on, for TensorBoard or xprof.

    Returns:
      (model, params) after the last step, as returned by `models.load`; None if SIGTERM stopped the
      run early, in which case its state is saved.

    Raises:
      ValueError: the folder holds a run with another config or can't hold a run, another process
        trains in it, or a config value is wrong.
      OSError: a bucket can't be read.
      FloatingPointError: the loss, gradient or update is not finite; the last checkpoint is kept.
      KeyboardInterrupt: Ctrl-C stopped the run; its state is saved, unless it was pressed twice.
    """
    from lawm_jax.data import settings

    workdir = rundir.folder(workdir)
    config = json.loads(config.to_json_best_effort())
    settings.check(config, per_device=True)
    config = rundir.upgrade(config)
    if "model" in config:
        config = objectives.complete(config)
    if init_from:
        config["init_from"] = exported.find(init_from)
        if not rundir.has_checkpoint(workdir):  # a resumed run ignores it
            _check_start(config)
    with rundir.claimed(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        return _fit(config, resume.check_config(workdir, config), workdir, profile)


def _check_start(config):
    """Checks that the run that a new one starts from has a checkpoint, and is of the same model."""
    checkpoints.reader(config["init_from"]).close()
    before, keys = rundir.read_config(config["init_from"]), ("model_step", "model_seed", "latent")
    if "model" in before and "model" in config:
        changed = [key for key in keys if before.get(key, config[key]) != config[key]]
        if changed:
            warnings.warn(
                f"init_from: {config['init_from']} was trained for a different model, which "
                f"differs in {', '.join(changed)}",
                stacklevel=3,
            )


def _fit(original, config, workdir, profile):
    """Trains or resumes, see `fit`; `original` is the config before it was checked against W's."""
    import ml_collections

    from lawm_jax.data import pipeline

    store = checkpoints.Checkpoints(workdir, keep_period=config.get("checkpoint_keep_period"))
    with contextlib.ExitStack() as failed:
        failed.callback(store.close)  # its threads must not outlive a folder that is removed
        if loaded := _finished(workdir, config, store):
            return loaded
        skipped = rundir.skipped(workdir)
        data = pipeline.clips(
            ml_collections.ConfigDict(config),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skipped=skipped,
        )
        run = Run.load(config, "states" in data.shapes)
        _check_shapes(run, data.shapes)
        held_out = HeldOut(run, config, skipped) if config.get("eval_every") else None
        if jax.process_index() == 0:  # only now, so that a failed start leaves no config
            rundir.write_config(workdir, json.dumps(config, indent=1, sort_keys=True))
            print(f"{_describe(run, original, workdir)}; compiling", flush=True)
        with run.compiling():
            start, state = store.restore(run.like, data) or (0, _begin(run, config, data))
            log = logs.Log(workdir, config["steps"], config["data"]["batch"], start)
        if start:
            log.say(f"resuming after step {start}")
        failed.pop_all()
    trace = logs.Trace(rundir.profile(workdir), start, profile, log)
    try:
        done = _Training(run, config, data, store, log, trace, held_out).loop(state, start)
    finally:
        with contextlib.ExitStack() as closing:  # closes all, even if one raises
            for part in (store, log, trace):  # closed in reverse order
                closing.callback(part.close)
    if not done:
        return None
    params = done["params"] | {"encoder": run.frozen["encoder"]}
    return run.model, models.complete(run.model, params, run.mesh)


def _check_shapes(run, shapes):
    """Raises ValueError unless the data has the arrays that the step uses, in their shapes."""
    for key, expected in run.batch.items():
        if shapes.get(key) != expected.shape[1:]:
            got = shapes.get(key, "none")
            raise ValueError(f"data: expected {key} of shape {expected.shape[1:]}, got {got}")


def _finished(workdir, config, store):
    """Returns (model, params) of a run whose steps are all done; None if steps remain."""
    if store.latest is None or store.latest < config["steps"]:
        return None
    try:
        loaded = models.load(workdir, store.latest)
    except ValueError:  # damaged: an earlier checkpoint is restored
        loaded = None
    if not checkpoints.all_agree(loaded is not None):
        return None
    if jax.process_index() == 0:
        print(f"{workdir}: all {config['steps']} steps are already done")
    return loaded


def _begin(run, config, data):
    """Initializes the state, from another run's parameters where the config names one."""
    state = run.begin(data)
    if not config.get("init_from"):
        return state
    params, report = models.warm_start(config["init_from"], run.like["params"], state["params"])
    if jax.process_index() == 0:
        print(report, flush=True)
    return run.with_params(state, params)


class _Training(NamedTuple):
    """Holds the parts of a running training; `held_out` is None without `eval_every`."""

    run: Run
    config: dict
    data: Iterator
    store: checkpoints.Checkpoints
    log: logs.Log
    trace: logs.Trace
    held_out: HeldOut | None

    def loop(self, state, start):
        """Runs the steps after `start` and returns the final state, or None after SIGTERM.

        Raises:
          FloatingPointError: the loss, gradient or update is not finite.
          KeyboardInterrupt: Ctrl-C stopped the run; its state is saved.
        """
        config, pending = self.config, None
        with _Termination() as termination:
            for step in range(start + 1, config["steps"] + 1):
                state, metrics = self._step(step, state)
                if pending:  # one step late, so that the device never waits
                    self.log.step(pending[0], self._checked(*pending))
                last = step == config["steps"]
                evaluated = self.held_out and (step % config["eval_every"] == 0 or last)
                if evaluated:
                    metrics |= self.held_out(state["params"])
                logged = step % config["log_every"] == 0 or step == start + 1 or last or evaluated
                pending = (step, metrics) if logged else None
                stop = termination.asked_at(step)
                if step % config["checkpoint_every"] == 0 or last or stop:
                    checked = self._checked(step, metrics)
                    if pending:
                        self.log.step(step, checked)
                    pending = None
                    self.log.flush()  # before the checkpoint, after which no step is logged again
                    self.store.save(step, state, self.data, wait=last or stop)
                if stop:
                    self.log.say(
                        f"stopped at step {step} on request; run the same command to resume"
                    )
                    if termination.interrupted:
                        raise KeyboardInterrupt
                    return None
        return state

    def _step(self, step, state):
        """Dispatches one step; returns the next state and its metrics."""
        self.trace.before(step)
        batch = self.run.place(next(self.data))
        with jax.transfer_guard("disallow"):
            state, metrics = self.run.step(self.run.frozen, state, batch)
        self.trace.after(step, metrics)
        self.log.advance(step)
        return state, metrics

    def _checked(self, step, metrics):
        """Waits for the metrics of a step and returns them as floats, with the learning rate."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(metrics["loss"] + metrics["grad_norm"] + metrics["update_norm"]):
            raise FloatingPointError(
                f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}, "
                f"update norm {metrics['update_norm']}; the last good checkpoint is that of "
                f"step {self.store.latest}"
            )
        rate = self.config["optim"]["adamw"] * float(self.run.schedule(step - 1))
        return metrics | {"lr": rate}


class _Termination:
    """Catches SIGTERM and Ctrl-C so that the run can save a checkpoint before it exits.

    A second Ctrl-C stops at once. With several processes, JAX's own handler catches SIGTERM and
    notifies all processes.
    """

    def __enter__(self):
        self.asked, self.interrupted, self.before = False, False, {}
        if jax.process_count() == 1:
            numbers = (signal.SIGTERM, signal.SIGINT)
            self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number, _):
        self.asked = True
        if number == signal.SIGINT:
            self.interrupted = True
            signal.signal(number, self.before[number])
            # `print` may not be called while it is running
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    def asked_at(self, step):
        """Returns whether to stop now, with the same answer on all processes."""
        if self.before:
            return self.asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _data(data):
    """Names the data of a run, with their shares if there are several."""
    if data["videos"]:
        return str(data["videos"])
    weights = {name: weight for name, weight in data["mixture"].items() if weight > 0}
    total = sum(weights.values())
    share = lambda name: f" {100 * weights[name] / total:.3g}%" if len(weights) > 1 else ""  # noqa: E731
    return ", ".join(f"{data['sources'][name]}{share(name)}" for name in sorted(weights))


def _describe(run, config, workdir):
    """Describes a run in one line, with the paths of `config`."""
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    devices, objective = run.mesh.devices.ravel(), run.objective.describe(run.model, config)
    clips = next(iter(run.batch.values())).shape[0]
    text = (
        f"{workdir}: {objective}, {count(run.like['params']):.2f} M trainable parameters, "
        f"{count(run.frozen):.1f} M frozen, {len(devices)} x {devices[0].device_kind}, "
        f"batches of {clips} clips of {config['data']['frames']} frames of {_data(config['data'])}"
    )
    if run.mesh.shape["fsdp"] > 1:
        text += ", mesh " + " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    if run.accumulate > 1:
        text += f", accumulated over {run.accumulate} parts"
    return text
