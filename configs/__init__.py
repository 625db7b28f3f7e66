"""What a run is: typed options of both stages, read from YAML and the command line.

Row 0 of the architecture: imports the standard library, yaml, pydantic and tyro only, so that
`--help` and every refusal come before torch is loaded.
"""
