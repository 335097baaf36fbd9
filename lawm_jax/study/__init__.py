"""Runs studies: many training runs and evaluations, made with the other commands."""
