"""How far long work is: bars or lines while it runs, a log and a status file for whoever looks from outside.

The work consists of named units (a piece of a study, or one training run), each with a weight, its share of the time, and perhaps the
setting it belongs to. `Progress` is told what happens to them. It estimates the time left from the weights of what it has seen done,
and keeps two files in the folder of the run: ``log.txt``, one line an event, and ``status.json``, where everything stands. `read`
gives that back, from another terminal too, and tells a run that was killed from one that still computes: a run holds a lock on its
log, which the system takes away when the process ends, however it ends. A full disk does not take the work down: what cannot be
written into the folder is told once on stderr.

>>> import tempfile
>>> from jaxbp.runtime import progress
>>> folder = tempfile.mkdtemp()
>>> work = {"mlp; seed 0": ("mlp", 1.0), "mlp; seed 1": ("mlp", 1.0)}
>>> with progress.Progress(work, folder, done_before=["mlp; seed 0"]) as watch:
...     watch.start("mlp; seed 1")
...     watch.done("mlp; seed 1")
[2/2] mlp; seed 1, 0 s, about 0 s left
>>> progress.read(folder).state
'finished'
"""

from jaxbp.runtime.progress.clock import format_seconds
from jaxbp.runtime.progress.progress import Progress
from jaxbp.runtime.progress.status import ProcessStatus, Status, StatusError, read
from jaxbp.runtime.progress.tally import STATES, Work
