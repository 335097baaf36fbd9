"""Measures speed: python -m benchmarks.NAME [--json FILE]; the last line is the headline ratio."""
