"""The training loop, the optimizer, sharding, checkpoints, and the models that runs leave."""
