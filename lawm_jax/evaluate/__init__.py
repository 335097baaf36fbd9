"""Evaluations: one module per question, each run on the held-out clips of a data source."""
