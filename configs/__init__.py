"""Configs of the command-line tools, installed with the package as `lawm_jax.configs`."""
