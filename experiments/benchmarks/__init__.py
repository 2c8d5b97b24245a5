"""Side-by-side timings against peers, each runnable with ``python -m``."""
