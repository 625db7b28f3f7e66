"""The parts of `python -m launch.submit`: options, site file, jobs, their script, checks."""
