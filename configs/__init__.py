"""Config files of the command lines; the package brings them as `lawm_jax.configs`."""
