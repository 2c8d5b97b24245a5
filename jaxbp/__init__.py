"""A laboratory for claims about deep learning theory.

Users import modules, one scientific question each: ``from jaxbp import landscape, evidence, sweep``.
"""

__version__ = "0.1.0"
