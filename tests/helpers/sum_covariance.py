"""E[relu(u_1 + u_2) relu(u_1 + u_2)'] of two normalised Gaussian channels, exactly, by a quadrature in two dimensions; NumPy.

With u_k = sqrt(D) y_k / r_k insert the integral over q of delta(q - r_1 / r_2) = (2 / q) r_1^2 delta(q^2 r_2^2 - r_1^2), write the delta
as a Fourier integral over omega, and use that the ReLU is homogeneous:

    K = (2 D / pi) int d log q Re int_0^inf d omega exp(-i omega D epsilon (1 - q^2)) det(A)^(-1/2) det(B)^(-1/2) relu(C),
    A = I + 2 i omega S_1,    B = I - 2 i omega q^2 S_2,    C = S_1 A^-1 + q^2 S_2 B^-1,

with relu(C) = E[relu relu'] of N(0, C) continued analytically: the real part of C is positive definite, so that principal branches meet
no cut.
"""

import numpy as np

_RANGE = 12.0  # of log(q / q_0), and of t in omega = sinh(t) / (2 largest eigenvalue)
_NEGLIGIBLE = -46.0  # of the logarithm of the modulus: 1e-20


def sum_covariance(first, second, epsilon, num_nodes=60):
    """(D, D), from the covariances (D, D) of the two branches."""
    size = len(first)
    centre = np.eye(size) - 1 / size
    (values_1, vectors_1), (values_2, vectors_2) = (np.linalg.eigh(centre @ matrix @ centre) for matrix in (first, second))
    values_1, values_2, shift = np.maximum(values_1, 0), np.maximum(values_2, 0), size * epsilon
    start = np.sqrt((values_1.sum() + shift) / (values_2.sum() + shift))
    ratios, step = np.linspace(-_RANGE, _RANGE, num_nodes, retstep=True)
    times, time_step = np.linspace(0, _RANGE, num_nodes + 1, retstep=True)
    total = np.zeros((size, size))
    for q in start * np.exp(ratios):
        scale = 0.5 / max(values_1.max(), q**2 * values_2.max())
        for place, time in enumerate(times):
            omega = scale * np.sinh(time)
            denominators = 1 + 2j * omega * values_1, 1 - 2j * omega * q**2 * values_2
            logs = -1j * omega * shift * (1 - q**2) - 0.5 * sum(np.log(denominator).sum() for denominator in denominators)
            if logs.real < _NEGLIGIBLE:
                break
            covariance = (vectors_1 * (values_1 / denominators[0])) @ vectors_1.T
            covariance = covariance + q**2 * (vectors_2 * (values_2 / denominators[1])) @ vectors_2.T
            weight = step * time_step * scale * np.cosh(time) * (0.5 if place == 0 else 1.0)
            total += weight * (np.exp(logs) * _relu_products(covariance)).real
    return 2 * size / np.pi * total


def _relu_products(covariance):
    """E[relu relu'] of N(0, C), (D, D), for a complex C; products of roots with positive real parts."""
    variances = np.diagonal(covariance)
    scales = np.sqrt(variances)
    correlation = covariance / np.outer(scales, scales)
    root = scales[:, None] * np.sqrt(variances[None, :] - covariance**2 / variances[:, None])
    np.fill_diagonal(root, 0.0)
    np.fill_diagonal(correlation, 1.0)
    return (root + covariance * (np.pi - np.arccos(correlation))) / (2 * np.pi)
