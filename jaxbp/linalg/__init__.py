"""Linear algebra with operators that multiply only: Lanczos, Golub-Kahan bidiagonalisation and Newton-CG."""
