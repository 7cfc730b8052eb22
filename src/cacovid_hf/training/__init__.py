"""Training the contribution policy by combinatorial policy optimisation (CPO; CaCoVID, arXiv 2602.01649, section on training).

Begin with `trainer`: one iteration in the order of the mathematics. It composes plain functions: `sampling` draws subsets of a video's tokens,
`rollouts` and `judge` let the frozen model answer from them, `rewards` says what an answer earns, `objective` turns subsets and rewards into a
loss. `replay` is what is remembered of a batch, `batches` which samples come when, `engine` what all this needs of transformers' `Trainer`.

Nothing here is imported for inference.
"""
