"""An iterator over batches whose position is one number, the same for all processes."""

import grain


class Stream(grain.DatasetIterator):
    """Iterates over batches; its state doesn't depend on processes, workers or threads."""

    def __init__(self, start, batch, shapes):
        """Creates an iterator at the first example.

        Args:
          start: function of the number of examples to skip, over all processes, that returns an
            iterator over this process's following batches.
          batch: examples per batch, over all processes.
          shapes: shapes of one example's arrays, by name.
        """
        super().__init__()
        self.shapes = shapes
        self._start, self._batch = start, batch
        self._examples = 0
        self._batches = None

    def __next__(self):
        if self._batches is None:
            self._batches = self._start(self._examples)
        batch = next(self._batches)
        self._examples += self._batch
        return batch

    def get_state(self):
        """Returns {"examples": number of examples read, over all processes}."""
        return {"examples": self._examples}

    def set_state(self, state):
        """Continues after `state["examples"]` examples.

        Raises:
          ValueError: it isn't a whole number of batches.
        """
        examples = state["examples"]
        if examples % self._batch:
            raise ValueError(f"examples: expected a multiple of {self._batch}, got {examples}")
        self._stop()
        self._examples = examples

    def close(self):
        """Stops threads and worker processes."""
        self._stop()
        super().close()

    def _stop(self):
        if self._batches is not None:
            self._batches.close()
            self._batches = None
