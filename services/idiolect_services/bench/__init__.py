"""Benchmarks: one form for all. Peers are measured in the same run on the same work, and targets live in one file."""
