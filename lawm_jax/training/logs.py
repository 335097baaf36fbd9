"""What a run says: a progress line, metrics.jsonl and TensorBoard, on process 0 alone."""

import json
import os
import time

import jax


class Log:
    """Writes the metrics of a run; every method does nothing on processes other than 0."""

    def __init__(self, workdir, steps, batch):
        """Opens the files.

        Args:
          workdir: folder of the run; lines are appended to metrics.jsonl.
          steps: length of the training, for the ETA.
          batch: clips per step.
        """
        self.steps, self.batch, self.active = steps, batch, jax.process_index() == 0
        self.last = None
        if self.active:
            from tensorboardX import SummaryWriter

            self.file = open(os.path.join(workdir, "metrics.jsonl"), "a")
            self.board = SummaryWriter(os.path.join(workdir, "tensorboard"))

    def step(self, step, metrics):
        """Logs one step's metrics (floats), and the speed since the last logged step."""
        now = time.monotonic()
        if self.last is not None and step > self.last[0]:
            clips = (step - self.last[0]) * self.batch
            metrics = metrics | {"clips_per_s": round(clips / (now - self.last[1]), 3)}
        self.last = step, now
        if not self.active:
            return
        self.file.write(json.dumps({"step": step} | metrics) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)
        line = f"step {step:>{len(str(self.steps))}}/{self.steps}"
        line += f"  loss {metrics['loss']:.4f}  error {metrics['error']:.4f}"
        line += f" ({metrics['error'] / max(metrics['copy'], 1e-9):.3f} of copying)"
        if "clips_per_s" in metrics:
            left = (self.steps - step) * self.batch / metrics["clips_per_s"]
            line += f"  {metrics['clips_per_s']:.1f} clips/s  ETA {_clock(left)}"
        print(line, flush=True)

    def say(self, text):
        """Prints a line."""
        if self.active:
            print(text, flush=True)

    def close(self):
        """Closes the files."""
        if self.active:
            self.file.close()
            self.board.close()


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
