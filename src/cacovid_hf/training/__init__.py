"""Training the contribution policy by combinatorial policy optimisation (CPO; CaCoVID, arXiv 2602.01649, section on training).

In the order of the mathematics: `sampling` draws subsets of a video's tokens, `rewards` judges what the frozen model answers from them,
`objective` turns subsets and rewards into a loss. All three are plain functions; nothing here is imported for inference.
"""
