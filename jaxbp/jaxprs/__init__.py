"""Readers of traced programs: an interpreter, the linear layers of a function, and the number of its matrix products."""
