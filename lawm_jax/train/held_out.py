"""The loss on held-out clips during training, for metrics.jsonl and TensorBoard."""

import itertools

import jax
import jax.numpy as jnp
import ml_collections

from lawm_jax.data import pipeline

CLIPS = 64  # at least, rounded up to whole batches


class HeldOut:
    """Computes the loss on fixed held-out clips, kept in the memory of the host."""

    def __init__(self, run, config, skipped=None):
        """Reads the clips and jits the loss.

        Args:
          run: loop.Run.
          config: nested dict, as in configs/.
          skipped: as in `pipeline.clips`.

        Raises:
          ValueError: no held-out file of a source can be read.
        """
        self.run, count = run, -(-CLIPS // config["data"]["batch"])
        plain = ml_collections.ConfigDict(config).copy_and_resolve_references()
        plain.data.augment.update(crop=False, flip=0.0, jitter=0.0, cut=0.0)
        plain.data.workers = 0
        data = pipeline.clips(
            plain,
            "test",
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skipped=skipped,
        )
        self.batches = [
            {key: batch[key] for key in run.batch} for batch in itertools.islice(data, count)
        ]
        objective, model = run.objective, run.model

        def loss(params, frozen, batch, key):
            noise = objective.noise(model, batch, key)
            inputs = objective.inputs(model, frozen, batch)
            value, metrics = objective.loss(model, params, frozen, inputs, noise)
            metrics.pop("latents", None)
            return {f"held_out_{name}": x for name, x in ({"loss": value} | metrics).items()}

        self.loss = jax.jit(loss)

    def __call__(self, params):
        """Returns the means over all batches of the loss and its metrics, float32 scalars."""
        total = []
        for number, batch in enumerate(self.batches):
            key = jax.random.key(number)  # the same noise at each step
            total.append(self.loss(params, self.run.frozen, self.run.place(batch), key))
        return jax.tree.map(lambda *x: jnp.stack(x).mean(), *total)
