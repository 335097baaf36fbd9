"""Evaluations: a file per question; `context` asks them all of one source's held-out clips."""
