"""Sweeps: one pure function over settings and seeds, on any number of devices and hosts.

`run` takes a function ``fn(key, *shared, **setting) -> results`` and a grid, and computes every setting with every seed. It writes each
result to a folder at once, resumes a stopped sweep, and returns the results. `Segments` describes long runs, which are saved between
their segments. `evaluate` computes a stack of runs by one of several plans.

An example:

>>> import jax
>>> from jaxbp import data, models, sweep, training
>>> digits = data.load("digits@4", num_train=200)
>>> def train(key, inputs, labels, *, learning_rate, width):
...     net = models.create("mlp", num_classes=10, width=width, depth=1)
...     settings = training.Settings(num_epochs=3, batch_size=50, measure_epochs=[3])
...     result = training.train(net, training.sgd(learning_rate, momentum=0.9), (inputs, labels), key, settings)
...     return {"loss": result.history["train_loss"][-1], "params": result.params}
>>> grid = {"learning_rate": [0.01, 0.1], "width": [8, 16]}
>>> results = sweep.run(train, grid, seeds=3, shared=[digits.train.inputs, digits.train.labels], quiet=True)  # out="runs/mine"
>>> table = results.to_dataframe()  # a row for each setting and seed
>>> bool(table[table.learning_rate == 0.1].loss.mean() < table[table.learning_rate == 0.01].loss.mean())
True
>>> dict(results.to_dataset(["loss"]).sizes)
{'learning_rate': 2, 'width': 2, 'seed': 3}
>>> results.where(width=8).stack("params/Dense_0/kernel").shape  # settings, seeds, axes of the kernel
(2, 3, 16, 8)
"""

from jaxbp.runtime.preemption import Terminated
from jaxbp.sweep.plans import PLANS, check_plan, choose, evaluate, keys, make_mesh, plan_of
from jaxbp.sweep.results import Record, Results, load
from jaxbp.sweep.runs import SweepError, run
from jaxbp.sweep.segments import Segments
from jaxbp.sweep.spec import SweepSpec
