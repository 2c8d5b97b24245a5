"""Iterative linear algebra on functions that multiply: Lanczos, Golub-Kahan, Newton with conjugate gradients."""
