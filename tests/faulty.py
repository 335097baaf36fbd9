"""Trains with a fault: python tests/faulty.py FAULT ...; what follows are flags of lawm_jax.train.

clock     from step 30 on the clock is a day behind
stall     process 1 waits 40 s for a batch, once
nan       the update of step 12 is not a number
"""

import itertools
import sys
import time

import jax.numpy as jnp
import optax
from absl import app

from lawm_jax.data import stream
from lawm_jax.train import __main__ as train


def clock():
    real, take, calls = time.time, stream.Stream.__next__, itertools.count()

    def late(self):
        if next(calls) == 30:
            time.time = lambda: real() - 86_400
        return take(self)

    stream.Stream.__next__ = late


def stall():
    import jax

    calls, take = itertools.count(), stream.Stream.__next__

    def late(self):
        if jax.process_index() == 1 and next(calls) == 5:
            time.sleep(40)
        return take(self)

    stream.Stream.__next__ = late


def nan():
    make = optax.warmup_cosine_decay_schedule

    def faulty(*args):
        schedule = make(*args)
        return lambda step: jnp.where(step == 11, jnp.nan, schedule(step))

    optax.warmup_cosine_decay_schedule = faulty


if __name__ == "__main__":
    {"clock": clock, "stall": stall, "nan": nan}[sys.argv.pop(1)]()
    app.run(train.main)
