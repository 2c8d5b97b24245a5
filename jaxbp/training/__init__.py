"""Training: a whole run as one compiled program, a run in segments, and runs on several devices or with data that stay on the host."""

from jaxbp.training.evaluation import evaluate, in_chunks, within_memory
from jaxbp.training.loop import epoch_fn, sgd, step_fn, train
from jaxbp.training.segments import Segmented, segmented
from jaxbp.training.settings import Perturbation, Settings, num_steps
from jaxbp.training.state import TrainResult, TrainState
