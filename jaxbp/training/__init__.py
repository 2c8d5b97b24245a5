"""Training: losses, a whole run as one compiled program, and the same on several devices or with data that stay on the host."""

from jaxbp.training.loop import (
    Perturbation,
    TrainResult,
    TrainState,
    epoch_fn,
    evaluate,
    in_dtype_of,
    num_steps,
    sgd,
    step_fn,
    train,
)
