"""One HTML page about runs, from the JSON files in their folders."""
