"""Measures this machine's kernels and collectives, and writes them as a machine file that every command accepts."""
