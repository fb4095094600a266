"""A fleet and a machine, simulated: what `python -m bench.simulate` puts together."""
