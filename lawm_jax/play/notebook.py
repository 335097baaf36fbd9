"""Helpers for notebooks: the page below a cell, videos and weights, in Colab and elsewhere.

`play.figures` draws the notebooks' figures.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import socket
import threading
import time

import jax
import ml_collections
import numpy as np

from lawm_jax.data import mini, paths, words
from lawm_jax.nn import pretrained
from lawm_jax.train import cpu, models, rundir

EXAMPLES = 16  # films of `own_videos`, if there are no others


def load_run(workdir):
    """Loads a run: its config (a ConfigDict, as for `lawm.clips`), model and parameters."""
    config = ml_collections.ConfigDict(rundir.read_config(workdir))
    return config, *models.load(workdir)


def compiled(function):
    """Compiles a function of the API, whose first argument is the model.

    Calling such a function as it is compiles each of its operations separately, which takes several
    times as long.
    """
    return jax.jit(function, static_argnums=0, compiler_options=cpu.options())


# The page.


@dataclasses.dataclass
class Page:
    """Holds a page that this process serves.

    Attributes:
      port: on localhost.
      server, thread: the uvicorn server, and the thread that runs it.
    """

    port: int
    server: object = dataclasses.field(repr=False)
    thread: threading.Thread = dataclasses.field(repr=False)

    def stop(self):
        """Stops the server and frees its port; does nothing if it has stopped."""
        self.server.should_exit = True
        self.thread.join(10)
        if self.thread.is_alive():  # a browser holds a connection
            self.server.force_exit = True
            self.thread.join()

    def __str__(self):
        return f"http://localhost:{self.port}"


def inline(workdir="nano", data=None, source=None, port=0, height=900):
    """Serves the page from this process, in the background, and shows it below the cell.

    In Colab, the page reaches the runtime through Colab's own proxy, which passes no websockets, so
    each step is a request, and frames per second are limited by the time to the runtime and back.
    In Jupyter, the browser must run on the machine of the kernel, or the port be forwarded.

    Args:
      workdir, data, source: as in `load.load`.
      port: on localhost; 0 takes a free one.
      height: of the page, in pixels.

    Returns:
      The `Page`, whose `stop` ends the server. It also ends with the process.

    Raises:
      ImportError: the page's packages are missing.
      OSError: the port is in use.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError(f"{error}; the page requires: pip install 'lawm_jax[play]'") from error
    from lawm_jax.play import load, server

    sock = _listen(port)
    try:
        shared = load.load(workdir, data, source)
    except BaseException:
        sock.close()
        raise
    port, output = sock.getsockname()[1], _colab("output")
    # Colab's proxy asks under another name; only the notebook's owner can reach it.
    hosts = None if output else ("localhost", "127.0.0.1")
    served = uvicorn.Server(server.config(shared, port, hosts))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not served.started and thread.is_alive():
        time.sleep(0.05)
    page = Page(port, served, thread)
    if output:
        output.serve_kernel_port_as_iframe(port, height=str(height))
    else:
        from IPython.display import IFrame, display

        display(IFrame(str(page), "100%", height))
    return page


def _listen(port):
    """Opens a socket on localhost; raises OSError if the port is in use."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"port: expected a free port, got {port}: {error}") from error
    return sock


def _colab(name):
    """Returns the module `google.colab.NAME`, or None elsewhere."""
    try:
        return importlib.import_module(f"google.colab.{name}")
    except ImportError:
        return None


def act(shared, source, scene=0):
    """Acts in the simulator toward a goal, if the simulator is installed.

    Args:
      shared: `shared.Shared`, from `load.load`.
      source: name of a data source with a controller.
      scene: int, which scene.

    Returns:
      label -> uint8 [T, H, W, 3]: the goal, and the simulator's image before each step; prints the
      distances. Without the simulator, prints how to install it and returns {}.
    """
    data = shared.sources[source]
    if missing := shared.planner.missing(data) or shared.planner.missing_simulator(data):
        print(missing)
        return {}
    pictures, goal, distances, radius = shared.planner.act(data, scene)
    first, last = distances[0], distances[len(pictures)]
    reached = "reached" if last <= radius else "not reached"
    print(
        f"{first:.3f} m from the goal at the start, {last:.3f} m after "
        f"{words.counted(len(pictures), 'step')}: "
        f"{reached} (within {radius:g} m)"
    )
    return {"goal": np.stack([goal] * len(pictures)), "simulator": np.stack(pictures)}


# Videos.


def own_videos(folder, path=""):
    """Finds the videos to train on.

    Args:
      folder: folder to write uploads or examples to; created if missing.
      path: of videos, as in a config's `data.videos`. If "", asks for an upload in Colab. Without
        an upload, and elsewhere, copies videos of the package and a file that is not a video.

    Returns:
      A value for `data.videos`.
    """
    if path:
        return path
    os.makedirs(folder, exist_ok=True)
    if files := _colab("files"):
        print("choose videos, or press Cancel to use the videos that come with the package")
        for name, content in files.upload().items():
            pathlib.Path(folder, os.path.basename(name)).write_bytes(content)
    if not os.listdir(folder):
        films = sorted(pathlib.Path(mini.FOLDER, "panda", "train").glob("*.mp4"))[:EXAMPLES]
        for film in films:
            shutil.copy(film, folder)
        pathlib.Path(folder, "broken.mp4").write_text("This file is not a video.\n")
    print(f"{folder}: {words.counted(len(os.listdir(folder)), 'file')}")
    return folder


def print_skipped(workdir):
    """Prints the files that a run could not read, with the reasons."""
    path, lines = rundir.skipped(workdir), []
    if paths.exists(path):
        lines = [json.loads(line) for line in rundir.read_lines(path).splitlines()]
    print(f"skipped files: {len(lines)}")
    for line in lines:
        print(f"  {line['path']}: {line['reason']}")


def vjepa2_weights(name):
    """Downloads public weights of V-JEPA 2, if they can be reached.

    Args:
      name: as in `pretrained.load_encoder`; or "" for random weights.

    Returns:
      The name, or "" with a printed notice if the weights cannot be downloaded.
    """
    reason = "no weights were requested"
    if name and os.path.exists(name):
        return name
    if name:
        try:
            pretrained.download(name)
            print(f"{name}: downloaded")
            return name
        except FileNotFoundError as error:
            reason = str(error).partition(". Without")[0]
    print(
        f"{'=' * 79}\nRANDOM WEIGHTS are used instead of those of V-JEPA 2 ({reason}).\n"
        "All cells run, but the states and the errors below are meaningless.\n" + "=" * 79
    )
    return ""
