"""The studies: one claim-testing program a module, each runnable with ``python -m``."""
