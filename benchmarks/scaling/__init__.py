"""A model of training on many GPUs: what is assumed, what follows by formulas, and a simulation.

In reading order: assumptions, sizes, costs, loading, simulation, pictures. `docs/design/scale.md`
says what came out.
"""
