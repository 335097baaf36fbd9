"""Converts any source once into shards that stream fast."""
