"""The training loop, objectives, optimizer, sharding, and saving and loading of models."""
