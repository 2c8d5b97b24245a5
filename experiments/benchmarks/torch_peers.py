"""The same networks in PyTorch, from the same weights, as the peers of the benchmarks. Imported only where PyTorch is installed.

JAX is not imported, so that the worker processes of `torch_sweeps` do without it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]  # running mean and unbiased variance of each BatchNorm
Norm = Callable[[torch.Tensor, str, torch.Tensor, torch.Tensor], torch.Tensor]  # (map, its layer, scale, bias) -> map

_EPSILON = 1e-5  # of BatchNorm, as in `jaxbp.models.layers`, and so is
_KEPT = 0.9  # the share of the old statistics that a step keeps


def use(device: str | torch.device) -> bool:
    """Compute on ``device`` from now on, float32 in full precision; False, and nothing is done, where PyTorch does not have it."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return False
    if torch.device(device).type == "cpu":
        return True  # as it is; naming it would slow every call down a little
    torch.set_default_device(device)
    torch.backends.cudnn.allow_tf32 = False
    return True


def from_flax(params: Any) -> Tensors:
    """Flax parameters as PyTorch tensors: dense kernels (out, in), convolution kernels (out, in, h, w)."""
    tensors = {}
    for name, leaf in _leaves(params):
        value = np.array(leaf)
        if name.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensors[name] = torch.tensor(np.ascontiguousarray(value))
    return tensors


def _leaves(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in sorted(params):
        if isinstance(params[name], Mapping):
            yield from _leaves(params[name], f"{prefix}{name}/")
        else:
            yield prefix + name, params[name]


def to_flat(tensors: Tensors) -> np.ndarray:
    """PyTorch tensors in the order and layout of Flax's flat parameters."""
    parts = []
    for name in sorted(tensors, key=_flax_order):
        value = tensors[name].detach()
        if name.endswith("kernel"):
            value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
        parts.append(value.reshape(-1).cpu().numpy())
    return np.concatenate(parts)


def _flax_order(name: str) -> tuple[str, str]:
    layer, kind = name.split("/")
    return layer, kind


class Plan(NamedTuple):
    """What the parameters do not tell of a network: its family, and the stride of each convolution or block."""

    family: str
    strides: tuple[int, ...]


def plan(net: Any) -> Plan:
    """Of a `jaxbp.models` MLP, ConvNet (pool "stride") or ResNet (BatchNorm)."""
    family = type(net).__name__
    if family == "ResNet":
        return Plan(family, tuple(stride for _, stride in net.blocks()))
    return Plan(family, tuple(step.stride for step in net.steps()) if family == "ConvNet" else ())


class Twin:
    """A network that has a `plan` with its data, in PyTorch; its statistics are fresh and updated by training."""

    def __init__(self, params: Any, net: Any, inputs: np.ndarray, labels: np.ndarray, *, channels_last: bool = False):
        self.plan = plan(net)
        self.channels_last = channels_last
        self.params = self.adopt(params)
        # cloned, as contiguous() leaves images of one channel with strides that PyTorch then reads as channels last
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.inputs = torch.tensor(inputs).permute(0, 3, 1, 2).clone(memory_format=memory_format)
        self.labels = torch.tensor(np.asarray(labels), dtype=torch.long)
        self.statistics = self.fresh_statistics()

    def adopt(self, params: Any) -> Tensors:
        """Flax parameters of the same network as tensors in the twin's memory format."""
        tensors = from_flax(params)
        if not self.channels_last:
            return tensors
        return {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in tensors.items()}

    def fresh_statistics(self) -> Statistics:
        """Mean 0 and variance 1 for every BatchNorm."""
        scales = {name.removesuffix("/scale"): value for name, value in self.params.items() if name.endswith("/scale")}
        return {name: (torch.zeros_like(value), torch.ones_like(value)) for name, value in scales.items()}

    def logits(self, params: Tensors, inputs: torch.Tensor, *, train: bool = False) -> torch.Tensor:
        """Logits (N, C) of inputs (N, C, H, W).

        BatchNorm: if ``train`` by the batch, updating the statistics; else by those of a fresh network, whatever they are now.
        """
        return forward(self.plan, params, inputs, by_batch(self.statistics) if train else _by_fresh)

    def loss(self, params: Tensors) -> torch.Tensor:
        """Mean cross-entropy over all data."""
        return F.cross_entropy(self.logits(params, self.inputs), self.labels)

    def double_backward(self, direction: Tensors) -> Tensors:
        """A Hessian product as PyTorch users write it: the gradient of (gradient . tangent)."""
        params = {k: v.clone().requires_grad_() for k, v in self.params.items()}
        gradient = torch.autograd.grad(self.loss(params), list(params.values()), create_graph=True)
        along = sum((g * direction[k]).sum() for k, g in zip(params, gradient, strict=True))
        return dict(zip(params, torch.autograd.grad(along, list(params.values())), strict=True))

    def forward_over_reverse(self, direction: Tensors) -> Tensors:
        """A Hessian product by torch.func."""
        return torch.func.jvp(torch.func.grad(self.loss), (self.params,), (direction,))[1]

    def check(self, direction: Tensors, expected: np.ndarray) -> None:
        """Refuse to time a peer that computes something else."""
        for found in (self.double_backward(direction), self.forward_over_reverse(direction)):
            error = np.linalg.norm(to_flat(found) - expected) / np.linalg.norm(expected)
            if not error < 1e-3:
                raise AssertionError(f"the PyTorch twin's Hessian product differs by {error:.1e}: not the same network")

    def train(self, order: torch.Tensor, learning_rate: float, momentum: float) -> float:
        """Plain SGD over the batches of example indices ``order`` (T, B); returns the last batch's loss."""
        return float(self.fit(self.params, self.statistics, order, learning_rate, momentum)[1])

    def fit(
        self,
        params: Tensors,
        statistics: Statistics,
        order: torch.Tensor,
        learning_rate: float,
        momentum: float,
    ) -> tuple[Tensors, torch.Tensor]:
        """`train` from any parameters: the trained ones and the last batch's loss; ``statistics`` are updated in place."""
        params = {k: v.clone().requires_grad_() for k, v in params.items()}
        optimizer = torch.optim.SGD(params.values(), lr=learning_rate, momentum=momentum)
        norm_fn = by_batch(statistics)
        loss = torch.zeros(())
        for batch in order:
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(self.plan, params, self.inputs[batch], norm_fn), self.labels[batch])
            loss.backward()
            optimizer.step()
        return params, loss.detach()

    @torch.no_grad()
    def evaluate(self, params: Tensors, statistics: Statistics, *, num_steps: int, batch_size: int) -> tuple[float, float]:
        """Mean loss and accuracy over all data, by the statistics that so many steps with such batches have left."""
        logits = forward(self.plan, params, self.inputs, _by_stored(statistics, num_steps, batch_size))
        hits = logits.argmax(1) == self.labels
        return float(F.cross_entropy(logits, self.labels)), float(hits.float().mean())


class Module(torch.nn.Module):
    """A `Twin` in evaluation mode as the module that libraries of attacks take."""

    def __init__(self, twin: Twin):
        super().__init__()
        self.twin = twin

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of inputs (N, C, H, W)."""
        return self.twin.logits(self.twin.params, inputs)


def pgd_train(
    twin: Twin,
    order: torch.Tensor,
    learning_rate: float,
    momentum: float,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    random_start: bool = True,
) -> float:
    """`Twin.train` on batches attacked by linf PGD in training mode, box [0, 1]; returns the last batch's loss."""
    params = {k: v.clone().requires_grad_() for k, v in twin.params.items()}
    optimizer = torch.optim.SGD(params.values(), lr=learning_rate, momentum=momentum)
    loss = torch.zeros(())
    for batch in order:
        inputs, labels = twin.inputs[batch], twin.labels[batch]
        lower, upper = (inputs - epsilon).clamp_(0, 1), (inputs + epsilon).clamp_(0, 1)
        frozen = {k: v.detach() for k, v in params.items()}  # the attack needs no gradients of the parameters
        now = torch.empty_like(inputs).uniform_(-epsilon, epsilon).add_(inputs) if random_start else inputs
        now = torch.clamp(now, lower, upper)
        for _ in range(num_steps):
            now.requires_grad_()
            attacked = F.cross_entropy(twin.logits(frozen, now, train=True), labels)
            (gradient,) = torch.autograd.grad(attacked, now)
            now = torch.clamp(now.detach() + step_size * gradient.sign(), lower, upper)
        optimizer.zero_grad()
        loss = F.cross_entropy(twin.logits(params, now, train=True), labels)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def ntk(twin: Twin, params: Tensors) -> torch.Tensor:
    """The full tangent kernel (N, N, C, C) by torch.func: every example's Jacobian, contracted layer by layer."""

    def one(p: Tensors, example: torch.Tensor) -> torch.Tensor:
        return twin.logits(p, example[None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one), (None, 0))(params, twin.inputs)
    return sum(torch.einsum("ikp,jlp->ijkl", j.flatten(2), j.flatten(2)) for j in jacobian.values())


def ntk_pairs(twin: Twin, params: Tensors, num_pairs: int) -> torch.Tensor:
    """``num_pairs`` entries of the kernel as the paper's loop has them: two backward passes an entry."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    num_examples, entries = len(twin.inputs), []

    def gradient(example: int, logit: int) -> list[torch.Tensor]:
        output = twin.logits(leaves, twin.inputs[example : example + 1])[0, logit]
        return torch.autograd.grad(output, list(leaves.values()))

    for pair in range(num_pairs):
        first, second = gradient(0, 0), gradient(pair % num_examples, pair // num_examples)
        entries.append(sum((a * b).sum() for a, b in zip(first, second, strict=True)))
    return torch.stack(entries)


def forward(plan: Plan, params: Tensors, inputs: torch.Tensor, norm_fn: Norm) -> torch.Tensor:
    """Logits (N, C) of inputs (N, C, H, W); ``norm_fn``: what BatchNorm does to a map."""
    if plan.family == "ResNet":
        return _resnet_logits(plan, params, inputs, norm_fn)
    features = inputs
    for i, stride in enumerate(plan.strides):
        features = F.relu(_conv(features, params[f"Conv_{i}/kernel"], params[f"Conv_{i}/bias"], stride))
    features = features.permute(0, 2, 3, 1).flatten(1)  # Flax flattens channels last
    last = (len(params) - 2 * len(plan.strides)) // 2 - 1
    for i in range(last + 1):
        features = F.linear(features, params[f"Dense_{i}/kernel"], params[f"Dense_{i}/bias"])
        features = F.relu(features) if i < last else features
    return features


def by_batch(statistics: Statistics) -> Norm:
    """BatchNorm by the batch, updating ``statistics`` in place; under `torch.func.vmap` they must be mapped with the maps."""

    def norm(features: torch.Tensor, layer: str, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        running = statistics[layer]
        return F.batch_norm(features, *running, scale, bias, training=True, momentum=1 - _KEPT, eps=_EPSILON)

    return norm


def _by_stored(statistics: Statistics, num_steps: int, batch_size: int) -> Norm:
    """BatchNorm by what `by_batch` has gathered from fresh statistics, with Flax's variance.

    PyTorch gathers unbiased variances, Flax biased ones, which are (n - 1) / n times as large, n being the values a channel
    has in a batch. Both start from 1, of which _KEPT ** num_steps is left, so that one follows from the other.
    """
    left = _KEPT**num_steps

    def norm(features: torch.Tensor, layer: str, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        mean, variance = statistics[layer]
        biased = left + (variance - left) * (1 - 1 / (batch_size * features[0, 0].numel()))
        return F.batch_norm(features, mean, biased, scale, bias, eps=_EPSILON)

    return norm


def _by_fresh(features: torch.Tensor, layer: str, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """By mean 0 and variance 1."""
    return features * (scale / (1 + _EPSILON) ** 0.5)[:, None, None] + bias[:, None, None]


def _resnet_logits(plan: Plan, params: Tensors, features: torch.Tensor, norm_fn: Norm) -> torch.Tensor:
    def conv_norm(x: torch.Tensor, prefix: str, layer: int, stride: int = 1) -> torch.Tensor:
        norm = f"{prefix}BatchNorm_{layer}"
        x = _conv(x, params[f"{prefix}Conv_{layer}/kernel"], None, stride)
        return norm_fn(x, norm, params[f"{norm}/scale"], params[f"{norm}/bias"])

    features = F.relu(conv_norm(features, "", 0))
    for block, stride in enumerate(plan.strides):
        prefix = f"BasicBlock_{block}/"
        branch = conv_norm(F.relu(conv_norm(features, prefix, 0, stride)), prefix, 1)
        shortcut = conv_norm(features, prefix, 2, stride) if f"{prefix}Conv_2/kernel" in params else features
        features = F.relu(branch + shortcut)
    return F.linear(features.mean((2, 3)), params["Dense_0/kernel"], params["Dense_0/bias"])


def _conv(features: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, stride: int) -> torch.Tensor:
    """Zeros on both sides alike, as `jaxbp.models.layers.conv` has them."""
    padding = [extent // 2 for extent in kernel.shape[2:]]
    return F.conv2d(features, kernel, bias, stride=[stride if size > 1 else 1 for size in features.shape[2:]], padding=padding)
