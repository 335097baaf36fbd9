"""Serves a page to play the world that a model imagines: python -m lawm_jax.play --workdir W.

Keys and buttons drive the imagined world from the first frame of a held-out clip: along the main
directions of the model's latent actions, by codes if latents are discrete, or by real actions if W
has a controller for the data source. Other tabs transfer the actions of one clip to another scene,
sample futures, plan real actions to a goal frame, and show a clip's latents over time. Clips are
held out of the data sources of the run, as in `lawm_jax.evaluate`; --data selects other ones. Your
own videos can be uploaded.

The page is served on this machine alone (localhost) and needs no network. Requires
pip install 'lawm_jax[play]'. In a notebook: `lawm_jax.play.notebook.inline(W)`.
"""

import socket

from absl import app, flags, logging

from lawm_jax.train.flags import named

WORKDIR = flags.DEFINE_string(
    "workdir", "nano", "Folder of the run; or an exported model, by default the one that ships."
)
PORT = flags.DEFINE_integer("port", 7860, "Port on localhost.", lower_bound=1, upper_bound=65535)
SOURCE = flags.DEFINE_string("source", None, "The only data source to use. Default: all.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "Data source to use instead of the run's own, as NAME=SOURCE, with SOURCE as in the config's "
    "data.sources; may be repeated.",
)


def main(argv):
    """Parses the flags and serves the page."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise app.UsageError(f"{error}; the page requires: pip install 'lawm_jax[play]'") from error
    with socket.socket() as one:  # else the page of another server would be opened
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", PORT.value))
        except OSError as error:
            raise app.UsageError(
                f"--port: expected a free port, got {PORT.value}: {error}"
            ) from error
    from lawm_jax.train import cpu

    cpu.keep_memory()
    from lawm_jax.play import load, server

    data = dict(named(text) for text in DATA.value)
    try:
        shared = load.load(WORKDIR.value, data, SOURCE.value)
    except (FileNotFoundError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    server.serve(shared, PORT.value)


if __name__ == "__main__":
    app.run(main)
