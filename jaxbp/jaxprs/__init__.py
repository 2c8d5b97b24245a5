"""Readers of traced programs: the linear layers of a function, and how many products it multiplies."""
