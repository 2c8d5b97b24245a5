"""What a run needs of its machine: files, a folder that survives kills, signals, processes, devices, progress."""
