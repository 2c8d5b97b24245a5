"""Ranks along a training against NumPy's singular values of the parameters that a training of as many epochs ends with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models, spectra, training


def test_ranks_are_those_of_the_parameters_at_each_epoch():
    net = models.from_functions(lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"])
    rng = np.random.default_rng(0)
    start = ({"a": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)}, {})
    data = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32), jnp.arange(8) % 2
    measure_fn = spectra.rank_measure(net.apply, data[0][:1], pattern="a")
    settings = training.Settings(num_epochs=2, batch_size=4)
    result = training.train(net, training.sgd(0.5), data, jax.random.key(0), settings, start=start, measure_fn=measure_fn)
    assert set(result.measured) == {"a"}
    for epoch, params in ((0, start[0]), (2, result.params)):
        values = np.linalg.svd(np.asarray(params["a"], np.float64), compute_uv=False)
        share = values / values.sum()
        expected = {
            "nuclear": values.sum() / np.sqrt((values**2).sum()),
            "stable": (values**2).sum() / values[0] ** 2,
            "entropy": np.exp(-(share * np.log(share)).sum()),
            "numerical": 4,
        }
        for name, rank in expected.items():
            assert result.measured["a"][name].shape == (3,)
            assert float(result.measured["a"][name][epoch]) == pytest.approx(rank, rel=1e-5), (epoch, name)
    assert result.measured["a"]["stable"][0] != result.measured["a"]["stable"][2]


def test_unknown_ranks_are_refused():
    for ranks in (("nuclear", "effective"), ()):
        with pytest.raises(ValueError, match="ranks must be of"):
            spectra.rank_measure(lambda p, x, s: x, jnp.ones((1, 2)), ranks=ranks)
