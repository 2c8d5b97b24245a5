"""An attack as a value: a method that is static, and a threat that is data.

``attack(logits_fn, key, inputs, labels)`` is pure: it may be jitted, vmapped over keys and parameters, and run in a scan. An attack
is a pytree too, whose leaves are the radius and the step size. Attacks that differ in these alone share a compiled program if a jitted
function takes them as arguments; networks of different parameters share it if ``logits_fn`` is a `jax.tree_util.Partial` of a
function and its parameters.

An attack treats inputs that the network already misclassifies like all others. `jaxbp.attacks.robust_accuracy` leaves them out.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> def logits(weights, inputs): return inputs @ weights
>>> network = jax.tree_util.Partial(logits, jnp.array([[1.0, 0.0], [0.0, 1.0]]))
>>> run = jax.jit(lambda attack, *arguments: attack(*arguments))
>>> inputs, labels = jnp.array([[0.5, 0.375], [0.9, 0.1]]), jnp.array([0, 0])
>>> for epsilon in (0.0625, 0.125):                                             # compiled once
...     result = run(attacks.fgsm(attacks.Threat("linf", epsilon)), network, jax.random.key(0), inputs, labels)
...     print(result.success.tolist(), result.adversarial[0].tolist())
[False, False] [0.4375, 0.4375]
[True, False] [0.375, 0.5]
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxbp import checks, metrics
from jaxbp.attacks import losses
from jaxbp.attacks.threat import Threat, wide
from jaxbp.ops import platform

LogitsFn = Callable[[jax.Array], jax.Array]  # inputs (N, ...) -> logits (N, C)
Targets = int | Literal["given"] | None
RUNS = ("auto", "loop", "batch")


class AttackResult(NamedTuple):
    """The worst inputs that an attack reached.

    Attributes:
      adversarial: (N, ...), the worst input for each example.
      success: (N,), whether that input reaches the goal: a mistake, or the target class.
      loss: (N,), the loss of the attack at that input.
      num_evaluations: (), forward passes spent on each example; a gradient counts as one.
    """

    adversarial: Float[Array, "N ..."]
    success: Bool[Array, " N"]
    loss: Float[Array, " N"]
    num_evaluations: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attack:
    """A method under a threat; made by `fgsm`, `pgd`, `apgd`, `fab`, `square`, or from a method of your own.

    Attributes:
      method: static and hashable; ``method(threat, step_size, logits_fn, key, inputs, labels) -> AttackResult``.
      threat: the allowed perturbations.
      step_size: the size of the first step, in units of the inputs; None if the method has none.
      gradient_free: whether the method uses no gradients; `robust_accuracy` compares the two kinds.
    """

    method: Callable[..., AttackResult] = dataclasses.field(metadata={"static": True})
    threat: Threat
    step_size: Any = None
    gradient_free: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(
        self, logits_fn: LogitsFn, key: PRNGKeyArray, inputs: Float[ArrayLike, "N ..."], labels: Int[ArrayLike, " N"]
    ) -> AttackResult:
        """Attack floating-point ``inputs`` (N, ...), which lie in the bounds, with integer ``labels`` (N,).

        Values are checked unless they are traced. Where a traced input lies outside the bounds, epsilon holds all the same.

        Raises:
          ValueError: arguments of other dtypes, shapes or values, or logits that are not (N, C).
        """
        checks.prng_key(key)
        self.threat.check_epsilon()
        if self.step_size is not None:
            checks.number(self.step_size, "step_size", least=0)
        examples, labels = checked_examples(logits_fn, inputs, labels)
        check_within(inputs, self.threat)
        return self.method(self.threat, self.step_size, logits_fn, key, examples, labels)

    @property
    def takes_targets(self) -> bool:
        """Whether ``labels`` are the classes to reach, not the true ones."""
        return getattr(self.method, "targets", None) == "given"

    def for_true_labels(self, name: str) -> "Attack":
        """This attack, where the function ``name`` hands it the true labels.

        Raises:
          ValueError: an attack with ``targets="given"``, which would push each example towards its own class.
        """
        if self.takes_targets:
            raise ValueError(
                f"{name} hands an attack the true labels, got one with targets='given', which would push each example towards its own "
                "class: leave targets out, or give a number of likeliest wrong classes"
            )
        return self

    def for_classes(self, num_classes: int) -> "Attack":
        """This attack, for a network of ``num_classes``.

        Raises:
          ValueError: fewer classes than the method needs.
        """
        if isinstance(self.method, RestartedMethod):
            self.method.check_classes(num_classes)
        return self


def checked_attacks(attacks: Mapping[str, Attack], function_name: str, inputs: np.ndarray, num_classes: int) -> Mapping[str, Attack]:
    """Attacks by name, each for true labels of ``num_classes`` and for ``inputs`` (N, ...) inside its bounds.

    Raises:
      ValueError: no such attacks.
    """
    if not isinstance(attacks, Mapping):
        got = "an Attack" if isinstance(attacks, Attack) else type(attacks).__name__
        raise ValueError(f"attacks must be a dict by name, such as {{'pgd': attack}}, got {got}")
    for name, attack in attacks.items():
        if not isinstance(attack, Attack):
            raise ValueError(
                f"attacks must be made by pgd, apgd, or another method of jaxbp.attacks, got {type(attack).__name__} as {name!r}"
            )
        attack.for_true_labels(function_name).for_classes(num_classes).threat.check_epsilon()
        check_within(inputs, attack.threat, repr(name))
    return attacks


def checked_examples(logits_fn: LogitsFn, inputs: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Floating-point inputs (N, ...) and labels (N,) of one of C classes; the range of labels is checked unless they are traced.

    Raises:
      ValueError: arguments that are none, or logits that are not (N, C).
    """
    examples = floating_examples(inputs)
    num, num_classes = checks.logits_shape(logits_fn, examples, name="logits_fn", num_examples=len(examples))
    return examples, checks.labels(labels, num_classes, num)


def floating_examples(inputs: Any) -> jax.Array:
    """Floating-point inputs (N, ...); ValueError for anything else."""
    examples = checks.examples(inputs)
    if not jnp.issubdtype(examples.dtype, jnp.floating):
        raise ValueError(f"inputs must be of a floating dtype, got {examples.dtype}: divide images by 255")
    return examples


def network_of(logits_fn: Callable[..., jax.Array]) -> jax.tree_util.Partial:
    """A function of logits as a pytree, which compiled programs take as an argument; ValueError for what cannot be called."""
    if isinstance(logits_fn, jax.tree_util.Partial):
        return logits_fn
    if not callable(logits_fn):
        raise ValueError(f"logits_fn must be a function inputs -> logits (N, C), got {type(logits_fn).__name__}")
    return jax.tree_util.Partial(logits_fn)


@jax.jit
def logits_of(network: jax.tree_util.Partial, inputs: jax.Array) -> jax.Array:
    """Logits of ``inputs`` (N, ...); networks of one function are traced once."""
    return network(inputs)


def check_within(inputs: ArrayLike, threat: Threat, name: str = "the threat") -> None:
    """Raise ValueError for inputs (N, ..., C) outside the bounds of a threat, or not finite; values are checked unless traced."""
    if isinstance(inputs, jax.core.Tracer):
        return
    values = np.asarray(inputs)
    low, high = threat.box(values)
    if not (np.isfinite(values) & (values >= low) & (values <= high)).all():
        raise ValueError(
            f"inputs must be finite and lie in the bounds {threat.bounds} of {name}, got {values.min()} to {values.max()}: normalise "
            "inside logits_fn, or state other bounds"
        )


class Goal(NamedTuple):
    """The goal of one run of an attack: any class but ``labels`` (N,), or the class ``targets`` (N,).

    Attributes:
      loss: a key of `jaxbp.attacks.losses.LOSSES`.
      labels: (N,), the true classes. None, with targets, makes the target class the success, not any mistake.
      targets: (N,), or None for any mistake.
    """

    loss: str
    labels: jax.Array | None
    targets: jax.Array | None

    def value(self, logits: jax.Array) -> jax.Array:
        """The loss to maximise, (N,)."""
        if self.targets is None:
            return losses.LOSSES[self.loss](logits, self.labels)  # type: ignore[arg-type]  # given if there are no targets
        return losses.TARGETED[self.loss](logits, self.labels, self.targets)

    def reached(self, logits: jax.Array) -> jax.Array:
        """Whether the goal is reached, (N,); NaN logits count as a mistake, and as no target."""
        if self.labels is None:
            return metrics.accuracy(logits, self.targets) > 0  # type: ignore[arg-type]  # given if there are no labels
        return metrics.accuracy(logits, self.labels) == 0


RunFn = Callable[[jax.Array, Goal], AttackResult]  # (key, goal) -> result of one run


@dataclass(frozen=True, kw_only=True)
class RestartedMethod:
    """A method that runs several times and keeps the worst input for each example; subclasses define `run_fn`.

    Static and hashable: equal methods share a compiled program.

    Attributes:
      loss: a key of `jaxbp.attacks.losses.LOSSES`.
      targets: None for any mistake; a number k for the k likeliest wrong classes, one run after another; "given" if the labels
        are the classes to reach.
      num_restarts: runs from different starts, for each target if there are several.
      runs: "loop" for one run after another, "batch" for runs side by side; "auto" loops on the CPU, where large batches
        fall out of the cache.

    Raises:
      ValueError: an option out of its range.
    """

    loss: str
    targets: Targets
    num_restarts: int
    runs: str

    def __post_init__(self):
        for name, value, choices in (("loss", self.loss, tuple(losses.LOSSES)), ("runs", self.runs, RUNS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        is_number = isinstance(self.targets, int) and not isinstance(self.targets, bool) and self.targets >= 1
        if not (self.targets is None or self.targets == "given" or is_number):
            raise ValueError(f"targets must be None, 'given' or a number of classes, got {self.targets!r}")
        if self.num_restarts < 1:
            raise ValueError(f"num_restarts must be at least 1, got {self.num_restarts}")

    def check_classes(self, num_classes: int) -> None:
        """Raise ValueError where targets or loss need more than ``num_classes``."""
        if isinstance(self.targets, int) and self.targets >= num_classes:
            raise ValueError(
                f"targets must be at most {num_classes - 1}, the number of wrong classes, got {self.targets}: lower targets, or "
                "num_targets of autoattack"
            )
        labels = jnp.zeros(1, jnp.int32)
        goal = Goal(self.loss, None if self.targets == "given" else labels, None if self.targets is None else labels)
        jax.eval_shape(goal.value, jax.ShapeDtypeStruct((1, num_classes), jnp.float32))

    def run_fn(self, threat: Threat, step_size: Any, logits_fn: LogitsFn, inputs: jax.Array) -> RunFn:
        """The function that makes one run from a key towards a goal."""
        raise NotImplementedError

    def __call__(
        self, threat: Threat, step_size: Any, logits_fn: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array
    ) -> AttackResult:
        """The worst result over all runs."""
        run_fn = self.run_fn(threat, step_size, logits_fn, inputs)
        goal, classes, extra = Goal(self.loss, labels, None), None, 0
        if self.targets == "given":
            goal = Goal(self.loss, None, labels)
        elif self.targets is not None:
            logits = logits_fn(inputs)
            self.check_classes(logits.shape[-1])
            likeliest = _likeliest_wrong(logits, labels, self.targets)
            classes, extra = jnp.repeat(likeliest, self.num_restarts, axis=0), 1
        num_runs = self.num_restarts if classes is None else len(classes)

        def run(draw: tuple[jax.Array, jax.Array | None]) -> AttackResult:
            run_key, target = draw
            return run_fn(run_key, goal if target is None else goal._replace(targets=target))

        draws = (jax.random.split(key, num_runs), classes)
        if num_runs == 1:
            result = run(jax.tree.map(lambda leaf: leaf[0], draws))
        elif self.runs == "loop" or (self.runs == "auto" and platform.current() == "cpu"):
            start = empty_result(jax.eval_shape(run, jax.tree.map(lambda leaf: leaf[0], draws)), inputs)
            result, _ = jax.lax.scan(lambda worst, draw: (elementwise_worst(worst, run(draw)), None), start, draws)
        else:
            stacked = jax.vmap(run)(draws)
            results = [jax.tree.map(lambda leaf, i=index: leaf[i], stacked) for index in range(num_runs)]
            result = functools.reduce(elementwise_worst, results)
        return result._replace(num_evaluations=result.num_evaluations + extra)


def elementwise_worst(first: AttackResult, second: AttackResult) -> AttackResult:
    """For each example the worse of two results: success before failure, then the larger loss, then the first.

    ``num_evaluations`` is the sum of both.
    """
    louder = (first.success == second.success) & (second.loss > first.loss)
    second_wins = louder | (second.success & ~first.success)

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(wide(second_wins, a), b, a)

    adversarial, success, loss = jax.tree.map(pick, first[:3], second[:3])
    return AttackResult(adversarial, success, loss, first.num_evaluations + second.num_evaluations)


def empty_result(shapes: AttackResult, inputs: jax.Array) -> AttackResult:
    """A result that every other result is worse than: no success, loss -inf, no evaluation."""
    loss = jnp.full(shapes.loss.shape, -jnp.inf, shapes.loss.dtype)
    return AttackResult(inputs, jnp.zeros(len(inputs), bool), loss, jnp.zeros((), shapes.num_evaluations.dtype))


def unevaluated_result(logits_fn: LogitsFn, goal: Goal, inputs: jax.Array) -> AttackResult:
    """`empty_result` at ``inputs`` (N, ...), with the dtypes of `forward_result`; nothing is computed."""
    return empty_result(jax.eval_shape(lambda x: forward_result(logits_fn, goal, x), inputs), inputs)


def forward_result(logits_fn: LogitsFn, goal: Goal, inputs: jax.Array) -> AttackResult:
    """``inputs`` (N, ...) themselves as a result, from one forward pass."""
    logits = logits_fn(inputs)
    return AttackResult(inputs, goal.reached(logits), goal.value(logits), jnp.ones((), jnp.int32))


def gradient_and_result(logits_fn: LogitsFn, goal: Goal, inputs: jax.Array) -> tuple[jax.Array, AttackResult]:
    """The gradient (N, ...) of the loss with respect to ``inputs`` (N, ...), and their `forward_result`."""

    def total(candidates: jax.Array) -> tuple[jax.Array, AttackResult]:
        result = forward_result(logits_fn, goal, candidates)
        return result.loss.sum(), result

    return jax.grad(total, has_aux=True)(inputs)


def _likeliest_wrong(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """The ``count`` classes of largest logits apart from the label, (count, N)."""
    others = jnp.where(labels[:, None] == jnp.arange(logits.shape[-1]), -jnp.inf, logits)
    return jax.lax.top_k(others, count)[1].T
