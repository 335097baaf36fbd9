"""Compiles a training step for devices that are not here; counts its work."""
