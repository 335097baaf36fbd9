"""Reads any source once, into shards that stream fast."""
