"""Builds an HTML report on runs from the JSON files in their folders."""
