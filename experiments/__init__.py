"""The studies: programs that test claims, each runnable with ``python -m``; and the guides to the lab.

.. include:: guide/results.md
.. include:: guide/studies.md
.. include:: guide/instruments.md
.. include:: guide/curvature.md
.. include:: guide/attacks.md
.. include:: guide/sweeps.md
.. include:: guide/own_study.md
.. include:: guide/verdicts.md
.. include:: guide/maps.md
.. include:: guide/plan.md
.. include:: guide/machines.md
.. include:: guide/troubleshooting.md
.. include:: guide/kernels.md
.. include:: guide/batch_norm_kernels.md
.. include:: guide/spectra.md
.. include:: guide/contributing.md
.. include:: guide/benchmarks.md
"""

__docformat__ = "restructuredtext"  # of the guides: pdoc includes them, and leaves their paragraphs alone
