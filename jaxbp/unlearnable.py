"""What can be learnt from unlearnable data: separability of perturbations, features reweighed, perturbations projected out.

Instruments of "What can we learn from unlearnable datasets?" (Sandoval-Segura, Singla, Geiping, Goldblum and Goldstein, NeurIPS 2023),
for perturbations such as those of `jaxbp.data.poisons`.

Separability is proven, either way. A linear classifier that is right on all perturbations shows that they are separable. Conversely, if
each of two classes holds a perturbation d together with -d, no affine classifier is right on all: ``w_y.d + b_y > w_c.d + b_c`` and the
same for -d add up to ``b_y > b_c``, and the other class gives the reverse. Without such pairs a minimiser of cross-entropy shows it:
separable data have none. A training accuracy alone shows nothing where there are no more examples than dimensions: any labels are then
separable. The accuracy on *fresh* perturbations tells whether a pattern is there.

>>> import numpy as np
>>> from jaxbp import unlearnable
>>> exclusive_or = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
>>> unlearnable.separability(exclusive_or, [0, 0, 1, 1], 2).status
'inseparable'
>>> Q = unlearnable.projection(np.array([[1.0, 1.0], [0.0, 0.0]]))
>>> unlearnable.project_out(exclusive_or, Q)[0].round(12).tolist()
[0.0, 1.0]
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray
from scipy.special import log_softmax

from jaxbp import checks, landscape, losses
from jaxbp.linalg import newton_cg

_SEPARABILITY_L2 = 1e-4  # of the classifier that is tried first: it separates what has a margin, and converges


class Head(NamedTuple):
    """A linear classifier of features.

    Attributes:
      kernel: (F, C).
      bias: (C,).
      loss: mean cross-entropy on the features that it was fitted to, without the penalty.
      gradient_norm: of the penalised loss with respect to kernel and bias of the standardised features; large if not converged.
    """

    kernel: Float64[np.ndarray, "F C"]
    bias: Float64[np.ndarray, " C"]
    loss: float
    gradient_norm: float

    def accuracy(self, features: Float[ArrayLike, "N ..."], labels: Int[ArrayLike, " N"]) -> float:
        """The share of features (N, F) that are classified correctly."""
        logits = self._logits(features)
        return float((logits.argmax(1) == checks.host_labels(labels, logits.shape[1], len(logits))).mean())

    def _logits(self, features: ArrayLike) -> np.ndarray:
        flat = _flat(features, "features")
        if flat.shape[1] != len(self.kernel):
            raise ValueError(f"features must be (N, {len(self.kernel)}), as the head was fitted, got shape {np.shape(features)}")
        return flat @ self.kernel + self.bias


def reweigh(
    features: Float[ArrayLike, "N ..."], labels: Int[ArrayLike, " N"], num_classes: int, *, l2: float, standardise: bool = True
) -> Head:
    """Refit the last layer alone: multinomial logistic regression, mean cross-entropy plus ``l2 / 2 ||kernel||^2``, in float64.

    The features come from a network in evaluation, so no statistics of its normalisations change (Kirichenko et al., "Last layer
    re-training is sufficient for robustness to spurious correlations", ICLR 2023; the authors' code stores those of the clean data).

    Args:
      features: (N, ...), flattened.
      labels: (N,).
      num_classes: C.
      l2: weight of the penalty, positive: without one, fewer examples than features have no minimiser. The bias is not penalised.
      standardise: give features mean 0 and deviation 1 for the fit; the result is for the features as they come. Constant features
        get no weight.

    Raises:
      ValueError: ``l2`` not positive, or labels that do not fit.
    """
    l2 = checks.number(l2, "l2", positive=True, known=True)
    flat = _flat(features, "features")
    labels = checks.host_labels(labels, num_classes, len(flat))
    mean, scale = (flat.mean(0), flat.std(0)) if standardise else (np.zeros(flat.shape[1]), np.ones(flat.shape[1]))
    constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1)
    scaled = np.where(constant, 0, flat - mean) / np.where(constant, 1, scale)
    design = np.column_stack([scaled, np.ones(len(flat))])
    penalty = np.append(np.full(flat.shape[1], l2), 0)[:, None]
    targets = np.eye(num_classes)[labels]

    def cross_entropy(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(design @ weights, 1)
        return float(-(log_p * targets).sum(1).mean()), np.exp(log_p)

    def value_fn(weights: np.ndarray) -> float:
        return cross_entropy(weights)[0] + 0.5 * float((penalty * weights**2).sum())

    def derivatives_fn(weights: np.ndarray) -> tuple[float, np.ndarray, newton_cg.Product]:
        _, p = cross_entropy(weights)

        def product(direction: np.ndarray) -> np.ndarray:
            moved = design @ direction
            return design.T @ (p * (moved - (p * moved).sum(1, keepdims=True))) / len(design) + penalty * direction

        return value_fn(weights), design.T @ (p - targets) / len(design) + penalty * weights, product

    fit = newton_cg.minimise(value_fn, derivatives_fn, np.zeros((design.shape[1], num_classes)), tolerance=1e-10)
    kernel = fit.position[:-1] / np.where(constant, 1, scale)[:, None]
    return Head(kernel, fit.position[-1] - mean @ kernel, cross_entropy(fit.position)[0], fit.gradient_norm)


class Separability(NamedTuple):
    """Whether an affine classifier can be right on all perturbations.

    Attributes:
      status: "separable" and "inseparable" are proven; "unknown" where only some classes split off, or float64 cannot tell.
      train_accuracy: of a logistic regression with a small penalty, on the perturbations that it was fitted to.
      fresh_accuracy: its accuracy on fresh perturbations; NaN if none were given.
      loss: its mean cross-entropy on the former.
    """

    status: Literal["separable", "inseparable", "unknown"]
    train_accuracy: float
    fresh_accuracy: float
    loss: float


def separability(
    perturbations: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    num_classes: int,
    *,
    fresh: tuple[Float[ArrayLike, "M ..."], Int[ArrayLike, " M"]] | None = None,
) -> Separability:
    """Separability of perturbations (N, ...) by their labels; see the module.

    Args:
      perturbations: what is left after clipping.
      labels: (N,).
      num_classes: C.
      fresh: further perturbations and labels, from another key. Of antithetic pairs both must be fresh: the accuracy is else mirrored.

    Raises:
      ValueError: labels that do not fit.
    """
    flat = _flat(perturbations, "perturbations")
    labels = checks.host_labels(labels, num_classes, len(flat))
    head = reweigh(flat, labels, num_classes, l2=_SEPARABILITY_L2)
    accuracy = head.accuracy(flat, labels)
    status: Any = "separable" if accuracy == 1 else "inseparable" if _has_antithetic_witness(flat, labels) else _by_minimiser(flat, labels)
    return Separability(status, accuracy, head.accuracy(*fresh) if fresh else float("nan"), head.loss)


def _has_antithetic_witness(flat: np.ndarray, labels: np.ndarray) -> bool:
    """Whether two classes hold a d together with -d."""
    num_found = 0
    for label in np.unique(labels):
        rows = flat[labels == label] + 0.0  # -0.0 becomes 0.0, so that equal rows have equal bytes
        present = {row.tobytes() for row in rows}
        num_found += any((0.0 - row).tobytes() in present for row in rows)
    return num_found >= 2


def _by_minimiser(flat: np.ndarray, labels: np.ndarray) -> str:
    classes, numbered = np.unique(labels, return_inverse=True)
    try:
        fit = landscape.fit_affine(flat, numbered, len(classes), loss="cross_entropy")
    except landscape.SeparableError:
        return "unknown"
    return "inseparable" if fit.accuracy < 1 else "unknown"


def linear_weights(
    inputs: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    num_classes: int,
    key: PRNGKeyArray,
    *,
    batch_size: int,
    num_epochs: int = 20,
    learning_rate: float = 0.1,
) -> Float[Array, "d C"]:
    """The weights (d, C) of a linear classifier without bias of perturbed inputs, by SGD, as the paper trains it.

    Batches come in fixed order, the last one left out unless it is whole; the learning rate falls tenfold at half and at three quarters
    of the epochs. The key is of the initial weights, uniform up to d^-1/2.

    Raises:
      ValueError: a batch size that is not from 1 to N, or labels that do not fit.
    """
    inputs = checks.examples(inputs)
    labels = checks.labels(labels, num_classes, len(inputs))
    if not 1 <= batch_size <= len(inputs):
        raise ValueError(f"batch_size must be from 1 to {len(inputs)}, got {batch_size}")
    flat = inputs.reshape(len(inputs), -1)
    flat = flat if jnp.issubdtype(flat.dtype, jnp.floating) else flat.astype(float)
    bound = flat.shape[1] ** -0.5
    start = jax.random.uniform(checks.prng_key(key), (flat.shape[1], num_classes), flat.dtype, -bound, bound)
    count = len(flat) // batch_size * batch_size
    batches = flat[:count].reshape(-1, batch_size, flat.shape[1]), labels[:count].reshape(-1, batch_size)
    epochs = np.arange(num_epochs)
    rates = learning_rate * 0.1 ** ((epochs >= num_epochs / 2).astype(float) + (epochs >= 0.75 * num_epochs))
    return _descend(start, batches, jnp.asarray(rates, flat.dtype))


@jax.jit
def _descend(weights: jax.Array, batches: tuple[jax.Array, jax.Array], rates: jax.Array) -> jax.Array:
    def loss(weights: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return losses.cross_entropy(batch[0] @ weights, batch[1]).mean()

    def epoch(weights: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.scan(lambda w, batch: (w - rate * jax.grad(loss)(w, batch), None), weights, batches)[0], None

    return jax.lax.scan(epoch, weights, rates)[0]


def projection(weights: Float[ArrayLike, "d C"], *, tolerance: float = 1e-6) -> Float64[np.ndarray, "d r"]:
    """An orthonormal basis Q (d, r) of what the columns of ``weights`` (d, C) span; r is their rank.

    Columns are first scaled to length 1; singular values below ``tolerance`` times the largest count as 0.

    Raises:
      ValueError: weights that are not a finite (d, C), or all 0.
    """
    columns = checks.host_values(weights, "weights")
    if columns.ndim != 2 or not np.isfinite(columns).all() or not columns.any():
        raise ValueError(f"weights must be finite numbers (d, C) that are not all 0, got shape {columns.shape}")
    lengths = np.linalg.norm(columns, axis=0)
    left, singular, _ = np.linalg.svd(columns / np.where(lengths > 0, lengths, 1), full_matrices=False)
    return left[:, singular > tolerance * singular[0]]


def project_out(inputs: Float[ArrayLike, "N ..."], Q: Float[ArrayLike, "d r"]) -> Float[np.ndarray, "N ..."]:
    """Inputs (N, ...) without their part in the span of Q, ``X - X Q Q'``; Q is that of `projection`.

    Raises:
      ValueError: inputs of another number of entries.
    """
    inputs, flat, basis = checks.host_array(inputs, "inputs"), _flat(inputs, "inputs"), checks.host_values(Q, "Q")
    if basis.ndim != 2 or len(basis) != flat.shape[1]:
        raise ValueError(f"Q must be ({flat.shape[1]}, r) for inputs of shape {inputs.shape}, got {basis.shape}")
    return (flat - (flat @ basis) @ basis.T).reshape(inputs.shape).astype(np.result_type(inputs, np.float32))


def _flat(values: ArrayLike, name: str) -> np.ndarray:
    """Examples (N, d) in float64, which JAX may not have."""
    array = np.asarray(checks.host_examples(values, name), np.float64)
    return array.reshape(len(array), -1)
