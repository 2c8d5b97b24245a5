"""The kind of device that a traced computation will run on, on which the choice of a formulation depends.

>>> from jaxbp.ops import platform
>>> platform.current() in ("cpu", "gpu", "tpu")
True
"""

import jax


def current() -> str:
    """The platform of `jax.default_device` where one is set (float64 on the host beside a GPU), else `jax.default_backend`."""
    device = jax.config.jax_default_device
    return getattr(device, "platform", device) or jax.default_backend()
