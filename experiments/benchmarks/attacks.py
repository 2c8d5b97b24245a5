"""Attacks: adversarial training against PyTorch; PGD against foolbox, AutoAttack and FAB against torchattacks, in time and strength.

``python -m experiments.benchmarks attacks [--quick] [--out FILE.json]``. Small ResNets of width 16 with BatchNorm, batches of 64
images, two sizes. A training step attacks its batch by PGD-7 from a random start and trains on the result, both in training
mode; ours chains its steps in one compiled scan, PyTorch loops over as many, contiguous and channels last. PGD-20 is
timed in evaluation mode against foolbox's LinfPGD on the very same Flax network, eager as it comes and compiled by hand, and
on its PyTorch twin. Before anything is timed, the twin must give the same loss on the first batch attacked without a random
start, and the same logits in evaluation.

The last rows tell of strength; lower is stronger. The robust accuracy of a ResNet trained on digits, under linf attacks of radius 0.1, at
equal steps and restarts, against foolbox. And of a ConvNet trained on digits, whose weights are carried over to PyTorch: the median
minimal norm by FAB, and the robust accuracy by APGD, by Square and by the whole of AutoAttack, against torchattacks, with the seconds
that each took; ours with the program compiled, and the first call apart.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Attacks
from jaxbp import attacks, data, losses, models, training

_BATCH = 64
_EPSILON = 0.1
_WEIGHT_STEP = 0.01  # learning rate: small, so that a chain of steps stays comparable
_CASES = {"8x8": (8, 8, 1), "28x28": (28, 28, 1)}
_BALLS = (("linf", "Linf", _EPSILON), ("l2", "L2", 0.5))  # ours, torchattacks' name, radius
_CHAIN = 4  # training steps in one program


def run(arguments: Attacks) -> None:
    """Run all cases and print the table."""
    harness.start()
    for peer in ("foolbox", "torchattacks"):
        if note := harness.missing_peer(peer):
            print(note)
    rows: list[dict[str, Any]] = []
    for name in list(_CASES)[:1] if arguments.quick else _CASES:
        rows += one_case(name, num_runs=2 if arguments.quick else arguments.runs)
    rows += strength(num_examples=60 if arguments.quick else None)
    size = {"num_examples": 20, "num_steps": 10, "num_queries": 50} if arguments.quick else {}
    harness.finish(rows + suites(**size), arguments.out)


def one_case(name: str, *, num_runs: int) -> list[dict[str, Any]]:
    """Time a chain of training steps and an evaluation on images of one size."""
    net = models.create("resnet", num_classes=10, width=16, stages=2, depth=1)
    images = jax.random.uniform(jax.random.key(1), (_BATCH * _CHAIN, *_CASES[name]))
    labels = jax.random.randint(jax.random.key(2), (len(images),), 0, 10)
    params, state = net.init(jax.random.key(0), images[:1])

    chain = _chain(net, attacks.pgd_training(attacks.Threat("linf", _EPSILON)))
    train = functools.partial(chain, params, state, images, labels, jax.random.key(3))
    first = images[:_BATCH], labels[:_BATCH]
    attack = jax.jit(attacks.pgd(attacks.Threat("linf", _EPSILON), num_steps=20, keep="last"))
    logits_fn = _in_evaluation(net, params, state)
    evaluate = functools.partial(attack, logits_fn, jax.random.key(4), *first)

    trainers, evaluators = {}, {}
    if not harness.missing_peer("torch"):
        trainers = _torch_training(net, params, state, images, labels)
    if not harness.missing_peer("foolbox"):
        evaluators = _foolbox(net, params, logits_fn, *first)
    rows = harness.compare(
        f"ResNet, {name}: {_CHAIN} steps of PGD-7 training",
        lambda: jax.block_until_ready(train()),
        trainers,
        num_runs=num_runs,
    )
    return rows + harness.compare(f"ResNet, {name}: PGD-20", lambda: jax.block_until_ready(evaluate()), evaluators, num_runs=num_runs)


def strength(*, num_examples: int | None) -> list[dict[str, Any]]:
    """Robust accuracy on digits of a network trained on clean inputs, by our attacks and foolbox's LinfPGD."""
    if harness.missing_peer("foolbox"):
        return []
    import foolbox

    digits = data.load("digits")
    net = models.create("resnet", num_classes=10, width=8, stages=2, depth=1)
    params, state = net.init(jax.random.key(0), digits.train.inputs[:1])
    settings = training.Settings(num_epochs=10, batch_size=64, measure_epochs=(10,))
    run = jax.jit(functools.partial(training.train, net, training.sgd(0.1, momentum=0.9), settings=settings))
    trained = run(tuple(digits.train), jax.random.key(1), start=(params, state))
    logits_fn = _in_evaluation(net, trained.params, trained.state)
    inputs, labels = (array[:num_examples] for array in digits.test)
    peer_model = foolbox.models.JAXModel(jax.jit(logits_fn), bounds=(0, 1))
    rows = []
    for restarts in (1, 5):
        threat = attacks.Threat("linf", _EPSILON)
        ours = {
            "PGD-20": attacks.pgd(threat, num_steps=20, num_restarts=restarts, keep="last"),
            "APGD-20": attacks.apgd(threat, num_steps=20, num_restarts=restarts),
        }
        peer = foolbox.attacks.LinfPGD(steps=20, rel_stepsize=2.5 / 20).repeat(restarts)
        broken = peer(peer_model, jax.numpy.asarray(inputs), jax.numpy.asarray(labels), epsilons=_EPSILON)[2]
        theirs = 1 - float(np.mean(np.asarray(broken)))
        for name, attack in ours.items():
            found = attacks.robust_accuracy(logits_fn, jax.random.key(5), inputs, labels, {name: attack}, check_masking=False)
            case = f"digits ResNet, {name}, {restarts} restart{'s' * (restarts > 1)}"
            error = (theirs * (1 - theirs) / len(inputs)) ** 0.5
            options = {"runs": 1, "standard_error": error}
            rows.append(harness.row(case, "robust accuracy", "", found.worst_case.estimate, theirs, "foolbox LinfPGD", **options))
    return rows


def suites(*, num_examples: int = 200, num_steps: int = 100, num_queries: int = 5000) -> list[dict[str, Any]]:
    """Minimal norms and robust accuracy of a ConvNet on digits, by our attacks and those of torchattacks, at equal settings.

    AutoAttack is left out where the settings are not the standard's, which torchattacks fixes.
    """
    if harness.missing_peer("torch") or harness.missing_peer("torchattacks"):
        return []
    import torch
    import torchattacks

    from experiments.benchmarks import torch_peers

    digits = data.load("digits")
    net = models.create("convnet", num_classes=10, width=16, depth=2, pool="stride")
    start = net.init(jax.random.key(0), digits.train.inputs[:1])
    settings = training.Settings(num_epochs=10, batch_size=64, measure_epochs=(10,))
    run = jax.jit(functools.partial(training.train, net, training.sgd(0.05, momentum=0.9), settings=settings))
    params = run(tuple(digits.train), jax.random.key(1), start=start).params
    network = jax.tree_util.Partial(net.apply, params)
    inputs, labels = (np.asarray(array[:num_examples]) for array in digits.test)
    twin = torch_peers.Twin(params, net.module, inputs, labels)
    module = torch_peers.Module(twin).eval()
    module.register_parameter("device", torch.nn.Parameter(torch.zeros(())))  # of which torchattacks reads the device
    with torch.no_grad():
        error = np.abs(module(twin.inputs).numpy() - np.asarray(network(inputs))).max()
    if not error < 1e-3:
        raise AssertionError(f"the PyTorch twin's logits differ by {error:.1e}: not the same network")

    def theirs(attack: Any) -> np.ndarray:
        adversarial = attack(twin.inputs, twin.labels)
        with torch.no_grad():
            wrong = (module(adversarial).argmax(1) != twin.labels).numpy()
        return np.where(wrong, 1, np.nan).reshape(-1, 1) * (adversarial - twin.inputs).detach().numpy().reshape(num_examples, -1)

    rows = []
    for norm, name, epsilon in _BALLS:
        threat, common = attacks.Threat(norm, epsilon), {"norm": name, "eps": epsilon, "seed": 0}
        case = f"digits ConvNet, {norm}"

        options = {"norm": norm, "num_steps": num_steps, "batch_size": num_examples}
        minimal, seconds = _clocked(lambda options=options: attacks.minimal_norms(network, jax.random.key(2), inputs, labels, **options), 2)
        peer = torchattacks.FAB(module, norm=name, eps=100.0, steps=num_steps, n_classes=10)
        steps_taken, peer_seconds = _clocked(lambda peer=peer: theirs(peer))
        norms = np.linalg.norm(steps_taken, np.inf if norm == "linf" else 2, axis=1)
        both = (minimal.distances > 0) & np.isfinite(norms) & np.isfinite(minimal.distances)
        medians = float(np.median(minimal.distances[both])), float(np.median(norms[both]))
        more = {"runs": 1, "median_of_ratios": float(np.median(norms[both] / minimal.distances[both]))}
        rows.append(harness.row(f"{case}, FAB", "median norm", "", *medians, "torchattacks", **more))
        rows.append(harness.row(f"{case}, FAB", "time", "s", seconds[1], peer_seconds[0], "torchattacks", runs=1, first=seconds[0]))

        suite = attacks.autoattack(threat, num_steps=num_steps, num_queries=num_queries)
        trials = {
            "APGD-CE": ({"apgd": suite["apgd_ce"]}, torchattacks.APGD(module, steps=num_steps, loss="ce", **common)),
            "Square": ({"square": suite["square"]}, torchattacks.Square(module, n_queries=num_queries, **common)),
            "AutoAttack": (suite, torchattacks.AutoAttack(module, n_classes=10, version="standard", **common)),
        }
        for attack_name, (ours, peer) in trials.items():
            if attack_name == "AutoAttack" and (num_steps, num_queries) != (100, 5000):
                continue
            evaluate = functools.partial(attacks.robust_accuracy, network, jax.random.key(3), inputs, labels, check_masking=False)
            evaluation, seconds = _clocked(
                lambda evaluate=evaluate, ours=ours: evaluate(attacks=ours, batch_size=min(num_examples, 100)), 2
            )
            steps_taken, peer_seconds = _clocked(lambda peer=peer: theirs(peer))
            accuracy = float(np.isnan(steps_taken).any(1).mean())
            alone = {"runs": 1, "standard_error": (accuracy * (1 - accuracy) / num_examples) ** 0.5}
            title = f"{case} {epsilon}, {attack_name}"
            rows.append(harness.row(title, "robust accuracy", "", evaluation.worst_case.estimate, accuracy, "torchattacks", **alone))
            rows.append(harness.row(title, "time", "s", seconds[1], peer_seconds[0], "torchattacks", runs=1, first=seconds[0]))
    return rows


def _clocked(function: Callable[[], Any], num_calls: int = 1) -> tuple[Any, list[float]]:
    """The result, and the seconds of each call."""
    seconds = []
    for _ in range(num_calls):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, seconds


def _in_evaluation(net: Any, params: Any, state: Any) -> Any:
    return jax.tree_util.Partial(net.apply, params, state=state)


def _chain(net: Any, perturb_fn: Callable[..., Any]) -> Callable[..., Any]:
    """``(params, state, images, labels, key) -> end``: one step a batch, in a compiled scan."""
    optimizer = training.sgd(_WEIGHT_STEP, momentum=0.9)
    step_fn = training.step_fn(net, optimizer, training.Settings(num_epochs=1, batch_size=_BATCH))

    def step(now: training.TrainState, draw: Any) -> tuple[training.TrainState, None]:
        (inputs, labels), key = draw
        inputs = perturb_fn(key, lambda x: net.update(now.params, x, now.model_state)[0], inputs, labels)
        return step_fn(now, ((inputs, labels), None))

    @jax.jit
    def chain(params: Any, state: Any, images: Any, labels: Any, key: Any) -> training.TrainState:
        start = training.TrainState(params, optimizer.init(params), state)
        batches = images.reshape(-1, _BATCH, *images.shape[1:]), labels.reshape(-1, _BATCH)
        return jax.lax.scan(step, start, (batches, jax.random.split(key, len(batches[0]))))[0]

    return chain


def _torch_training(net: Any, params: Any, state: Any, images: Any, labels: Any) -> dict[str, Callable[[], Any]]:
    """A chain of steps in both memory formats; AssertionError if its first adversarial loss is not ours."""
    import torch

    from experiments.benchmarks import torch_peers

    threat = attacks.Threat("linf", _EPSILON)
    attack = attacks.adversarial_batch(attacks.pgd(threat, num_steps=7, step_size=_EPSILON / 4, keep="last", random_start=False))

    @jax.jit
    def first_loss(params: Any, inputs: Any, labels: Any) -> Any:
        def logits_fn(x: Any) -> Any:
            return net.update(params, x, state)[0]

        inputs = attack(jax.random.key(0), logits_fn, inputs, labels)
        return losses.cross_entropy(logits_fn(inputs), labels).mean()

    expected = float(first_loss(params, images[:_BATCH], labels[:_BATCH]))
    order = torch.arange(len(images)).reshape(-1, _BATCH)
    peers = {}
    for title, last in {"PyTorch": False, "PyTorch, channels last": True}.items():
        twin = torch_peers.Twin(params, net.module, np.asarray(images), np.asarray(labels), channels_last=last)
        options = {"epsilon": _EPSILON, "step_size": _EPSILON / 4, "num_steps": 7}
        found = torch_peers.pgd_train(twin, order[:1], _WEIGHT_STEP, 0.9, random_start=False, **options)
        if not np.isclose(found, expected, rtol=1e-2):  # signs of gradients near 0 may differ
            raise AssertionError(f"the PyTorch twin has another adversarial loss: {found} against {expected}")
        peers[title] = functools.partial(torch_peers.pgd_train, twin, order, _WEIGHT_STEP, 0.9, **options)
    return peers


def _foolbox(net: Any, params: Any, logits_fn: Any, images: Any, labels: Any) -> dict[str, Callable[[], Any]]:
    """LinfPGD on the compiled Flax network and on the PyTorch twin, in both memory formats."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(steps=20, rel_stepsize=2.5 / 20)

    def on_jax(network: Callable[..., Any]) -> Callable[[], Any]:
        model = foolbox.models.JAXModel(network, bounds=(0, 1))
        return lambda: jax.block_until_ready(attack(model, images, labels, epsilons=_EPSILON)[1])

    peers = {"foolbox on JAX": on_jax(logits_fn), "foolbox on JAX, network compiled": on_jax(jax.jit(logits_fn))}
    if harness.missing_peer("torch"):
        return peers
    import torch

    from experiments.benchmarks import torch_peers

    expected = np.asarray(logits_fn(images))
    for title, last in {"foolbox on PyTorch": False, "foolbox on PyTorch, channels last": True}.items():
        twin = torch_peers.Twin(params, net.module, np.asarray(images), np.asarray(labels), channels_last=last)
        module = torch_peers.Module(twin).eval()
        with torch.no_grad():
            error = np.abs(module(twin.inputs).cpu().numpy() - expected).max()
        if not error < 1e-3:
            raise AssertionError(f"the PyTorch twin's logits differ by {error:.1e}: not the same network")
        on_torch = foolbox.models.PyTorchModel(module, bounds=(0, 1), device=twin.inputs.device)
        peers[title] = functools.partial(attack, on_torch, twin.inputs, twin.labels, epsilons=_EPSILON)
    return peers
