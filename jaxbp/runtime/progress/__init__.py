"""Progress of long work: bars or lines in the terminal, a log and a status file for other processes.

The work consists of named units (a job of a study, or one training run), each with a weight, its share of the time, and optionally a
setting. The program reports changes of the units to `Progress`, which estimates the time left from the weights of finished units and
writes two files to the folder of the run: ``log.txt``, one line an event, and ``status.json``, the current state. `read` returns that
state in any process and distinguishes a killed run from a running one: a run holds a lock on its log, which the operating system releases
when the process ends. A full disk does not stop the work; each kind of failed write is reported once on stderr.

>>> import tempfile
>>> from jaxbp.runtime import progress
>>> folder = tempfile.mkdtemp()
>>> work = {"mlp; seed 0": ("mlp", 1.0), "mlp; seed 1": ("mlp", 1.0)}
>>> with progress.Progress(work, folder, done_before=["mlp; seed 0"]) as tracker:
...     tracker.start("mlp; seed 1")
...     tracker.done("mlp; seed 1")
[2/2] mlp; seed 1, 0 s, about 0 s left
>>> progress.read(folder).state
'finished'
"""

from jaxbp.runtime.progress.clock import format_seconds
from jaxbp.runtime.progress.events import MissingTensorBoardError
from jaxbp.runtime.progress.progress import Progress
from jaxbp.runtime.progress.status import ProcessStatus, Status, StatusError, read
from jaxbp.runtime.progress.tally import STATES, Work
