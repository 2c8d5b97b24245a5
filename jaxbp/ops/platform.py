"""The kind of device that a traced computation will run on, on which the choice of a formulation depends.

>>> from jaxbp.ops import platform
>>> platform.current() in ("cpu", "gpu", "tpu")
True
"""

from typing import Any

import jax


def current() -> str:
    """The platform of `jax.default_device` where one is set (float64 on the host beside a GPU), else `jax.default_backend`."""
    device = jax.config.jax_default_device
    return getattr(device, "platform", device) or jax.default_backend()


def default_device() -> Any:
    """The device on which JAX computes what is nowhere in particular."""
    default = jax.config.jax_default_device
    return jax.local_devices(backend=default)[0] if default is None or isinstance(default, str) else default
