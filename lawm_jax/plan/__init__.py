"""Planners for any cost, planning tasks for world models, and closed-loop control in simulators."""
