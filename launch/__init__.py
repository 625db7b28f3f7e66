"""How runs start: entry scripts, Slurm, the demo."""
