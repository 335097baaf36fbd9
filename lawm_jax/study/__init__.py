"""Studies: tables of runs, made by the other commands."""
