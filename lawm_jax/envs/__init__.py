"""Provides the simulators and policies that generated the embedded data set."""
