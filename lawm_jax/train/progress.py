"""Shows the progress of a run in one line of a terminal."""

import logging
import shutil
import sys

import tqdm
from absl import logging as absl_logging

FORMAT = "step {n_fmt}/{total_fmt} |{bar:10}| ETA {remaining}{desc}"


def on_terminal():
    """Returns whether a person reads the output: neither stdout nor stderr is a file or a pipe."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class Bar:
    """Draws a bar on stdout; until `close`, lines that Python code prints or logs appear above it.

    What libraries in C print may garble the line until it is drawn again.
    """

    def __init__(self, steps, start):
        """Draws the bar and redirects stdout, stderr and the log.

        Args:
          steps: length of the run.
          start: number of steps that are done.
        """
        self._before = sys.stdout, sys.stderr
        width = shutil.get_terminal_size().columns - 1  # 79 if the width is unknown
        self._bar = tqdm.tqdm(
            total=steps, initial=start, file=sys.stdout, bar_format=FORMAT, ncols=width
        )
        sys.stdout, sys.stderr = (_Above(self._bar, stream) for stream in self._before)
        self._redirect(dict(zip(self._before, (sys.stdout, sys.stderr), strict=True)))

    def advance(self, text):
        """Counts a step and shows `text` from then on."""
        self._bar.set_description_str(text, refresh=False)
        self._bar.update()

    def close(self, text):
        """Leaves the bar with a last `text` and restores stdout, stderr and the log."""
        self._bar.set_description_str(text, refresh=False)
        above = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._before
        self._redirect(dict(zip(above, self._before, strict=True)))
        self._bar.close()
        for stream in above:
            stream.finish()

    @staticmethod
    def _redirect(streams):
        handlers = [*logging.getLogger().handlers, absl_logging.get_absl_handler().python_handler]
        for handler in handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                handler.setStream(streams[handler.stream])


class _Above:
    """A text stream that writes whole lines above a bar."""

    def __init__(self, bar, stream):
        self._bar, self._stream, self._rest = bar, stream, ""

    def write(self, text):
        with self._bar.get_lock():
            lines, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._bar.clear(nolock=True)
                self._stream.write(lines + newline)
                self._stream.flush()
                self._bar.refresh(nolock=True)
        return len(text)

    def finish(self):
        """Writes the start of a line that was not completed."""
        self._stream.write(self._rest)

    def __getattr__(self, name):
        return getattr(self._stream, name)
