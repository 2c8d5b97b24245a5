"""The machine of a run: atomic files, a folder that survives kills, signals, processes, devices, progress."""
