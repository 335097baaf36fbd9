"""Shows the page in a notebook, on Colab or in Jupyter."""

import threading
import time

import uvicorn

from lawm_jax.play import load, server


def inline(workdir="nano", data=None, source=None, port=7860, height=900):
    """Serves the page from this process and shows it below the cell.

    In Colab, the page reaches the runtime through Colab's own proxy, which passes no websockets, so
    each step is a request, and frames per second are limited by the time to the runtime and back.
    The server runs until the process ends.

    Args:
      workdir, data, source: as in `load.load`.
      port: a free port.
      height: of the page, in pixels.

    Returns:
      What displays the page, in Jupyter.

    Raises:
      RuntimeError: the port is in use.
    """
    try:
        from google.colab import output
    except ImportError:
        output = None
    shared = load.load(workdir, data, source)
    # Colab's proxy asks under another name; only the notebook's owner can reach it.
    hosts = None if output else ("localhost", "127.0.0.1")
    found = uvicorn.Server(server.config(shared, port, hosts))
    thread = threading.Thread(target=found.run, daemon=True)
    thread.start()
    while not found.started:
        if not thread.is_alive():
            raise RuntimeError(f"port: expected a free port, got {port}, which is in use")
        time.sleep(0.05)
    if output:
        return output.serve_kernel_port_as_iframe(port, height=str(height))
    from IPython.display import IFrame

    return IFrame(f"http://localhost:{port}", "100%", height)
