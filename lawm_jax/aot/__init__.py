"""Compiles a training step ahead of time for absent devices and counts its FLOPs."""
