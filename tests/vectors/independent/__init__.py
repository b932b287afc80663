"""A second implementation of all that the vectors pin down: numpy, `hashlib` and an AES cipher, nothing of this project.

It is the reader of docs/vectors.md who writes own dealer and parties. `formats` and `points` are the formats, `world`
runs all parties and the dealer of one vector at once, the gates follow; `gates` compares opened results with float64.
"""
