"""Serves a web page, on localhost only, for playing the world that a model imagines.

Examples:
  lawm play
  lawm play --workdir runs/first --port 7861
  lawm play --data walks=mini:nav

Keys drive the imagined world, starting from the first frame of a held-out clip or of an uploaded
video. Other tabs transfer actions to another scene, sample futures, plan to a goal frame and show
latent actions over time.
Requires pip install 'lawm_jax[play]'. In a notebook: `lawm_jax.play.notebook.inline(W)`. See
docs/play.md.
"""

import socket

from absl import app, flags

from lawm_jax.train import command
from lawm_jax.train.flags import as_typed, sources

WORKDIR = flags.DEFINE_string(
    "workdir", "nano", "Run folder or exported model; nano is the shipped model."
)
PORT = flags.DEFINE_integer("port", 7860, "Port on localhost.", lower_bound=1, upper_bound=65535)
SOURCE = flags.DEFINE_string("source", None, "Name of the only data source to use. Default: all.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "Data source to use instead of the run's own: NAME=SOURCE, with SOURCE as in the config's "
    "data.sources; may be repeated.",
)


def main(argv):
    """Parses the flags and serves the page."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise app.UsageError(f"{error}; the page requires: pip install 'lawm_jax[play]'") from error
    with socket.socket() as sock:  # otherwise the page of another server would be opened
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", PORT.value))
        except OSError as error:
            raise app.UsageError(
                f"--port: expected a free port, got {PORT.value}: {error}"
            ) from error
    from lawm_jax.train import cpu

    cpu.keep_memory()
    from lawm_jax.play import load, server

    data = sources(DATA.value)
    with as_typed(data):
        shared = load.load(WORKDIR.value, data, SOURCE.value)
    server.serve(shared, PORT.value)


if __name__ == "__main__":
    command.run(main)
