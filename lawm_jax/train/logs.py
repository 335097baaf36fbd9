"""Logs metrics to the terminal, metrics.jsonl and TensorBoard, on process 0 only.

A terminal shows a bar, see `progress`; a file or a pipe receives a line per logged step.
"""

import json
import sys
import time

import jax

from lawm_jax.data import paths
from lawm_jax.train import lines, progress, rundir


class Log:
    """Writes the metrics of a run; all methods do nothing on processes other than 0."""

    def __init__(self, workdir, steps, batch, start=0):
        """Opens the files.

        Args:
          workdir: folder of the run; lines are appended to metrics.jsonl, see `lines`.
          steps: length of the training, for the ETA.
          batch: clips per step.
          start: the step from which the run resumes. Lines of later steps, written by an
            interrupted run after its last checkpoint, are removed.
        """
        self.steps, self.batch, self.active = steps, batch, jax.process_index() == 0
        self.last = self.board = self.bar = None
        self.text = ""  # shown next to the bar
        self.folder, self.start = paths.Staging(rundir.tensorboard(workdir)), start
        if self.active:
            self.file = lines.open_steps(rundir.metrics(workdir), start)

    def advance(self, step):
        """Shows, on a terminal, that a step was dispatched."""
        if self.bar is None and self.active and progress.on_terminal():
            self.bar = progress.Bar(self.steps, step - 1)
        if self.bar is not None:
            self.bar.advance(self.text)

    def step(self, step, metrics):
        """Logs the metrics (floats) of one step, and the speed since the last logged step."""
        now = time.monotonic()
        if self.last is not None and step > self.last[0]:
            clips = (step - self.last[0]) * self.batch
            metrics = metrics | {"clips_per_s": round(clips / (now - self.last[1]), 3)}
        self.last = step, now
        if not self.active:
            return
        self.file.write(json.dumps({"step": step} | metrics) + "\n")
        loss, speed = _describe(metrics), ""
        if "clips_per_s" in metrics:
            speed = f"  {metrics['clips_per_s']:.1f} clips/s"
        self.text = f"{speed}  {loss}"
        if self.bar is None:
            line = f"step {step:>{len(str(self.steps))}}/{self.steps}  {loss}{speed}"
            if speed:
                remaining = (self.steps - step) * self.batch / metrics["clips_per_s"]
                line += f"  ETA {_clock(remaining)}"
            print(line, flush=True)
        if self.board is None:  # opened after the first line is printed, because it is slow
            self.board = _summary_writer()(self.folder.path, purge_step=self.start + 1)
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def say(self, text):
        """Prints a line."""
        if self.active:
            print(text, flush=True)

    def flush(self):
        """Uploads the logs, if the run's folder is in a bucket."""
        if self.active:
            self.file.flush()
        if self.board is not None and self.folder.temporary:
            self.board.flush()
            self.folder.upload()

    def close(self):
        """Closes the files and the bar."""
        if self.bar is not None:
            self.bar.close(self.text)
        if self.active:
            self.file.close()
        if self.board is not None:
            self.board.close()
        self.folder.close()


class Trace:
    """Records a profiler trace of some steps, after the first ones; on process 0 only."""

    FIRST = 6  # the first steps compile and fill caches

    def __init__(self, folder, start, steps, log):
        """Plans to trace `steps` steps of a run that begins after step `start`; 0 for none."""
        self.folder, self.log, self.running = paths.Staging(folder), log, False
        self.steps = range(start + self.FIRST, start + self.FIRST + steps)
        if not log.active:
            self.steps = range(0)

    def before(self, step):
        """Starts the trace before the first step that it covers."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(self.folder.path)
            self.running = True

    def after(self, step, metrics):
        """Ends the trace after the last step, once the device has finished it."""
        if self.running and step == self.steps[-1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self):
        """Writes the trace if one is running."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            self.folder.upload()
            where = self.folder.folder
            self.log.say(
                f"trace of steps {self.steps[0]} to {self.steps[-1]}: {where}; to view it: "
                f"pip install xprof && xprof --logdir {where}"
            )


def _describe(metrics):
    """Returns the loss, and the error in terms of a baseline, as text."""
    text = f"loss {metrics['loss']:.4f}  error {metrics['error']:.4f}"
    if "copy" in metrics:
        text += f" ({metrics['error'] / max(metrics['copy'], 1e-9):.3f}x copying)"
    if "mean_latent" in metrics:
        share = metrics["error"] / max(metrics["mean_latent"], 1e-9)
        text += f" ({share:.3f}x the mean latent)"
    if "psnr" in metrics:
        text += f"  PSNR {metrics['psnr']:.2f} dB"
    if "held_out_loss" in metrics:
        text += f"  held-out loss {metrics['held_out_loss']:.4f}"
    return text


def _summary_writer():
    """Imports tensorboardX without PyTorch, which it imports if installed."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
