"""Locks an ingest's folder, records its plan, and writes its files atomically."""

import contextlib
import glob
import hashlib
import json
import os

from lawm_jax.data import metadata


@contextlib.contextmanager
def claim_part(out, part):
    """Locks one part of a folder while a `with` block runs.

    A new folder in which the block writes nothing is removed afterwards.

    Raises:
      BlockingIOError: another process has locked the part.
    """
    import fcntl  # POSIX only

    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"out: expected a folder, got the file {out}")
    new = not os.path.exists(out)
    os.makedirs(out, exist_ok=True)
    lock = os.path.join(out, f".ingest-{part[0]}-of-{part[1]}.lock")
    locks = glob.glob(os.path.join(glob.escape(out), ".ingest-*-of-*.lock"))
    clashing = [path for path in locks if not path.endswith(f"-of-{part[1]}.lock")]
    with contextlib.ExitStack() as stack:
        if new:
            stack.callback(_remove_empty, out)
        for path in [*clashing, lock]:
            file = stack.enter_context(open(path, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"{out}: another process is ingesting into it; wait for it, or stop it"
                raise BlockingIOError(text) from None
            except OSError:  # the file system has no locks
                pass
            stack.callback(lambda path=path: os.path.exists(path) and os.remove(path))
        yield


def _remove_empty(folder):
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def claim_plan(out, plan, sources, size):
    """Writes the plan to the folder, or checks that the folder was started with the same plan.

    Args:
      out: the folder.
      plan: `plans.Plan`.
      sources: split -> source.
      size: maximum number of items per shard.

    Raises:
      ValueError: the folder was started with another plan, other items or other shards.
    """
    expected = plan._asdict() | {"shard_items": size, "items": {}}
    for split, source in sources.items():
        digest = hashlib.sha256()
        for item in source.items:
            digest.update(str(item).encode(errors="surrogateescape") + b"\n")
        expected["items"][split] = f"{len(source.items)} ({digest.hexdigest()[:16]})"
    expected = json.loads(json.dumps(expected))
    path = os.path.join(out, "plan.json")
    try:
        before = metadata.load(path, "the plan of an ingest")
    except ValueError:
        if os.path.exists(path):
            raise
        write(path, json.dumps(expected, indent=1))
        return
    changed = [
        f"{key}: {before.get(key)!r}, now {value!r}"
        for key, value in expected.items()
        if before.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"{out}: expected a new folder or one started with the same source and options; these "
            f"changed: {'; '.join(changed)}"
        )


def partial(path, process=None):
    """Returns the name of a process's partial file, renamed to the final name with `os.replace`."""
    return f"{path}.partial-{process or os.getpid()}"


def write(path, text):
    """Writes a file atomically."""
    with open(partial(path), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial(path), path)
