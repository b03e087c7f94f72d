"""Training of the bundled models. `python -m fcs_lab.training --help` lists them."""
