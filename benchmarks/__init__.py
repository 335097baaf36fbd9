"""Benchmarks speed: python -m benchmarks.NAME [--json FILE] prints the headline ratio last."""
