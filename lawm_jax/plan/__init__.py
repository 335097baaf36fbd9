"""Planners over any cost, tasks that a world model plans, and acting in the simulators."""
