"""Exports the decoder of a training run D to decoder_nano.safetensors; see README.md.

python -m lawm_jax.assets.make_decoder D
"""

import json
import sys

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from lawm_jax import world_model
from lawm_jax.nn import pretrained
from lawm_jax.train import models


def main(workdir):
    """Saves the latest checkpoint's decoder, in float16, with its section of the config."""
    model, params = models.load(workdir)
    options = json.dumps(world_model.to_config(model)["decoder"], sort_keys=True)
    flat = flatten_dict(params["decoder"], sep="/")
    flat = {name: np.asarray(x, np.float16) for name, x in flat.items()}
    save_file(flat, pretrained.DECODER, metadata={"decoder": options})


if __name__ == "__main__":
    main(*sys.argv[1:])
