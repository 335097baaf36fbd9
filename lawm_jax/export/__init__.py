"""Export: latent actions, states and labels of a data source as arrays for other programs."""
