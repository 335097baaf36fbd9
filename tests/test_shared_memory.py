"""Worker processes hand clips over in shared memory, of which a container may have little."""

import os
import shutil
import types

import pytest

from lawm_jax.data import pipeline


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="a system without /dev/shm")
def test_too_little_shared_memory_is_said_before_a_worker_starts(get_config, monkeypatch):
    config = get_config("size=tiny")
    config.data.update(batch=16, workers=2)
    usage = types.SimpleNamespace(free=2**20)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda x: usage if "shm" in str(x) else real(x))
    clips = pipeline.clips(config)
    with pytest.raises(ValueError, match="data.workers: expected .* in /dev/shm.* got 1 MiB"):
        next(clips)


def test_a_machine_without_such_a_folder_is_not_asked(tmp_path):
    pipeline.check_shared_memory(2**60, str(tmp_path / "none"))
