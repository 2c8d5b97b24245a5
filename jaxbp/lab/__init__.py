"""What all studies share: the command line, pieces of work in a folder that survives a kill, verdicts, the page, an orderly end.

`Study` is the whole way; `Arguments` and `Settings` are what a study extends; the work is a list of named `Piece` objects.
`run_pieces` computes those that the folder does not hold yet, shows how far it is and how long it may take, in ``log.txt`` and
``status.json`` too (`jaxbp.runtime.progress`), and writes each one before it says so. `guarded` turns what can go wrong for a user into
one clear line and an exit code: 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM; what is finished stays on disk and the same command
goes on from there. JAX is imported by `start_jax`, after the arguments have been parsed, so that ``--help`` is instant.
"""

from jaxbp.lab.cli import guarded
from jaxbp.lab.jobs import Piece, device, run_pieces
from jaxbp.lab.output import outcome, print_table, print_verdicts, write_results
from jaxbp.lab.results import Results
from jaxbp.lab.settings import ONE_PROCESS, Arguments, Cluster, Settings, SettingsError
from jaxbp.lab.study import Study
from jaxbp.runtime.jax_setup import provenance, start_jax
