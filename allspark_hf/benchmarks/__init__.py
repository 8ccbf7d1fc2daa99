"""Benchmarks: speed and memory of the methods, of AllSpark as in a textbook, and of encoders, on this machine."""
