"""Networks that draw random numbers: attacks on their expectation, and the accuracy of a random draw (Athalye et al., ICML 2018).

A network with dropout at test time, added noise or random crops is a function ``network_fn(key, inputs) -> logits``. An attack that meets
one draw of it learns about that draw, and the accuracy that it leaves says little. `expectation` makes a network of the mean logits over
``num_samples`` draws, whose gradient is the mean gradient (section 5.2 of the source, "expectation over transformation"). All attacks take
it. Its draws depend on the inputs, so that every step of an attack meets fresh ones, and the function stays pure.

`randomised_accuracy` attacks the expectation, and then counts over fresh draws how often the network is right: at the clean input, and at
the adversarial one. The attack that hurts an example most is chosen by one set of draws and counted by another, so that the choice does
not flatter the attack. The mean over examples is the accuracy of one random draw of the network, which is what a user of such a network
meets.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> def noisy(key, inputs):                                         # right with probability 0.98 at a margin of 0.6, 0.86 at 0.3
...     return 5 * inputs + jax.random.normal(key, inputs.shape)
>>> inputs, labels = jnp.tile(jnp.array([[0.8, 0.2]]), (100, 1)), jnp.zeros(100, int)
>>> suite = {"pgd": attacks.pgd(attacks.Threat("linf", 0.15), num_steps=5)}
>>> result = attacks.randomised_accuracy(noisy, jax.random.key(0), inputs, labels, suite)
>>> print(f"{result.clean.estimate:.2f} {result.worst_case.estimate:.2f}")
0.98 0.86
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks, metrics, stats
from jaxbp.attacks.attack import Attack, checked_attacks, checked_examples, network_of
from jaxbp.attacks.batching import full_batches
from jaxbp.jaxprs import interpret

NetworkFn = Callable[[jax.Array, jax.Array], jax.Array]  # (key, inputs (N, ...)) -> logits (N, C)
_DRAWS = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")  # primitives


def expectation(network_fn: NetworkFn, key: PRNGKeyArray, *, num_samples: int = 20) -> jax.tree_util.Partial:
    """The network of the mean logits over ``num_samples`` draws, in the form that attacks take.

    Draws are made anew at other inputs, and are the same at the same ones. They run one after another, and are computed again for the
    gradient, so that memory does not grow with their number.

    Args:
      network_fn: (key, inputs (N, ...)) -> logits (N, C); a `jax.tree_util.Partial` of a function and its parameters shares programs.
      key: of all draws.
      num_samples: draws for each logit and each gradient.

    Raises:
      ValueError: arguments that are none of these.
    """
    checks.prng_key(key)
    return jax.tree_util.Partial(_Expectation(checks.count(num_samples, "num_samples")), network_of(network_fn), key)


@dataclass(frozen=True)
class _Expectation:
    """The static side of `expectation`."""

    num_samples: int

    def __call__(self, network_fn: NetworkFn, key: jax.Array, inputs: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, _digest(inputs)), self.num_samples)
        draw = jax.checkpoint(lambda draw_key: network_fn(draw_key, inputs))
        return jax.lax.map(draw, keys).mean(0)


@dataclass(frozen=True)
class RandomisedEvaluation:
    """The result of `randomised_accuracy` for N examples.

    Attributes:
      clean_share: (N,), the share of draws that are right at the clean example.
      robust_share: (N,), the share of draws that are right at the worst of the adversarial inputs, or at the example itself.
      shares: for each attack (N,), the share of draws that are right at its input; of other draws than ``robust_share``.
      adversarial: (N, ...), the worst inputs.
      num_samples, num_draws: draws in each gradient, and draws for each share.
    """

    clean_share: Float[np.ndarray, " N"]
    robust_share: Float[np.ndarray, " N"]
    shares: dict[str, Float[np.ndarray, " N"]]
    adversarial: Float[np.ndarray, "N ..."]
    num_samples: int
    num_draws: int

    @property
    def clean(self) -> stats.Interval:
        """Accuracy of a random draw without attack, with Student's 95 % interval over examples."""
        return stats.t_interval(self.clean_share)

    @property
    def worst_case(self) -> stats.Interval:
        """Accuracy of a random draw under the worst attack, with Student's 95 % interval over examples."""
        return stats.t_interval(self.robust_share)

    @property
    def statement(self) -> str:
        """A sentence that says what is random in the robust accuracy."""
        accuracy = self.worst_case
        return (
            f"Robust accuracy of a random draw of the network: {accuracy.estimate:.3f}, 95 % interval {accuracy.low:.3f} to "
            f"{accuracy.high:.3f} over {len(self.robust_share)} examples, {self.num_draws} draws each; attacks averaged "
            f"{self.num_samples} draws in each gradient."
        )


def randomised_accuracy(
    network_fn: NetworkFn,
    key: PRNGKeyArray,
    inputs: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    attacks: Mapping[str, Attack],
    *,
    num_samples: int = 20,
    num_draws: int = 100,
    batch_size: int = 128,
) -> RandomisedEvaluation:
    """Attack the expectation of a randomised network at all examples, and count over fresh draws how often it stays right.

    Args:
      network_fn: (key, inputs (N, ...)) -> logits (N, C), as for `expectation`.
      key: of all draws.
      inputs, labels: floating-point (N, ...) inside the bounds of every threat, and integers (N,); N of at least 2.
      attacks: by name.
      num_samples: draws for each logit and each gradient of an attack.
      num_draws: draws for each share.
      batch_size: examples attacked at a time.

    Raises:
      ValueError: arguments that an attack refuses, or an attack with ``targets="given"``.
    """
    checks.refuse_traced("inputs, labels and key", inputs, labels, checks.prng_key(key))
    num_draws, batch_size = checks.count(num_draws, "num_draws"), checks.count(batch_size, "batch_size")
    attack_key, choice_key, count_key, clean_key = jax.random.split(key, 4)
    network, mean_network = network_of(network_fn), expectation(network_fn, attack_key, num_samples=num_samples)
    inputs, labels = map(np.asarray, checked_examples(mean_network, inputs, labels))
    attacks = checked_attacks(attacks, "randomised_accuracy", inputs, checks.logits_shape(mean_network, inputs)[1])

    def share(points: np.ndarray, draws: jax.Array) -> np.ndarray:
        result = np.zeros(len(points))
        for batch, (rows, places) in enumerate(full_batches(np.arange(len(points)), batch_size)):
            keys = jax.random.split(jax.random.fold_in(draws, batch), num_draws)
            result[places] = np.asarray(_share_right(network, keys, points[rows], labels[rows]))[: len(places)]
        return result

    worst, least = inputs.copy(), share(inputs, choice_key)
    shares = {}
    for index, (name, attack) in enumerate(attacks.items()):
        points = inputs.copy()
        for batch, (rows, places) in enumerate(full_batches(np.arange(len(inputs)), batch_size)):
            batch_key = jax.random.fold_in(jax.random.fold_in(attack_key, index), batch)
            points[places] = np.asarray(_adversarial(attack, mean_network, batch_key, inputs[rows], labels[rows]))[: len(places)]
        shares[name] = share(points, choice_key)
        lower = shares[name] < least
        worst[lower], least[lower] = points[lower], shares[name][lower]
    return RandomisedEvaluation(share(inputs, clean_key), share(worst, count_key), shares, worst, num_samples, num_draws)


def refuse_coupling(network: jax.tree_util.Partial, inputs: np.ndarray | jax.Array) -> None:
    """Raise `BatchCouplingError` if the logits of an example differ alone and beside another one; networks that draw numbers pass."""
    if isinstance(network.func, _Expectation):  # draws anew at other inputs
        return
    try:
        checks.independent_examples(_logits, None, network, [(jnp.asarray(inputs),)], "Evaluate with stored statistics (evaluation mode)")
    except checks.BatchCouplingError:
        if not is_random(network, jnp.asarray(inputs[:1])):
            raise


def _logits(fn: None, network: jax.tree_util.Partial, inputs: jax.Array) -> jax.Array:
    return network(inputs)


def is_random(network: jax.tree_util.Partial, inputs: jax.Array) -> bool:
    """Whether a network (inputs -> logits) draws random numbers, in JAX or, between two traces, elsewhere; `expectation` may.

    Traced once for each function, shapes and dtypes.
    """
    if isinstance(network.func, _Expectation):
        return False
    leaves, structure = jax.tree.flatten((network, inputs))
    return _is_random(structure, tuple((jnp.shape(leaf), getattr(leaf, "dtype", jnp.result_type(leaf))) for leaf in leaves))


@functools.lru_cache(maxsize=128)
def _is_random(structure: Any, types: tuple[tuple[tuple[int, ...], Any], ...]) -> bool:
    arguments = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in types])
    first, second = (interpret.trace(lambda network, inputs: network(inputs), *arguments) for _ in range(2))
    if str(first.jaxpr) != str(second.jaxpr):
        return True
    same = all(np.array_equal(a, b) for a, b in zip(first.consts, second.consts, strict=True))
    return not same or _draws(first)


def _draws(program: interpret.Program) -> bool:
    return any(operation.name in _DRAWS or any(map(_draws, operation.programs)) for operation in program.operations)


def _digest(inputs: jax.Array) -> jax.Array:
    """A number (), uint32, that changes with any bit of the inputs."""
    kind = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[inputs.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(inputs), kind).ravel().astype(jnp.uint32)
    weights = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    mixed = (words ^ (words >> 15)) * jnp.uint32(0x9E3779B1) * weights
    return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)


@jax.jit
def _adversarial(attack: Attack, network: Any, key: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return attack(network, key, inputs, labels).adversarial


@jax.jit
def _share_right(network_fn: NetworkFn, keys: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of draws (N,) that classify each input as its label."""
    return jax.lax.map(lambda key: metrics.accuracy(network_fn(key, inputs), labels) > 0, keys).mean(0)
