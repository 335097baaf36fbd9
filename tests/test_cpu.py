"""What a process keeps of the memory that it has freed, and what it computes on."""

import subprocess
import sys

import jax
import pytest

from lawm_jax.train import cpu

CODE = """
import ctypes, sys
from lawm_jax.train import cpu

if sys.argv[1] == "keep":
    cpu.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
block = libc.malloc(2**27)
ctypes.memset(ctypes.c_void_p(block), 1, 2**27)
libc.free(block)
status = open("/proc/self/status").read()
print(int(status.split("VmRSS:")[1].split()[0]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept_where_asked():
    run = lambda what: subprocess.run(  # noqa: E731
        [sys.executable, "-c", CODE, what], check=True, capture_output=True, text=True
    )
    kept, given_back = (int(run(what).stdout) for what in ("keep", "leave"))
    assert kept - given_back > 100  # MB, of 128


def test_options_are_those_that_this_version_of_xla_knows():
    found = cpu.options("cpu")
    assert found["xla_cpu_prefer_vector_width"] == 512
    assert jax.jit(lambda x: x + 1, compiler_options=found)(1) == 2
    assert cpu.options("tpu") == {}


def test_a_gpu_that_jax_leaves_unused_is_an_error(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(cpu.glob, "glob", lambda pattern: [])
    assert cpu.accelerator() == "cpu"
    monkeypatch.setattr(cpu.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    with pytest.raises(RuntimeError, match=r"it has a GPU, but JAX uses the CPU; install"):
        cpu.accelerator()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cpu.accelerator().startswith("gpu: ")


def test_memory_is_left_alone_on_an_accelerators_host(monkeypatch):
    calls = []
    libc = type("libc", (), {"mallopt": lambda self, *options: calls.append(options)})
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: libc())
    monkeypatch.setattr(cpu.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    before = jax.config.jax_platforms
    try:
        for platforms, count in ("cuda,cpu", 0), ("cpu", 3):
            jax.config.update("jax_platforms", platforms)
            cpu.keep_memory()
            assert len(calls) == count
    finally:
        jax.config.update("jax_platforms", before)
