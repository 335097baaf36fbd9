"""Benchmarks speed: python -m benchmarks.NAME [--json FILE] prints the main ratio last."""
