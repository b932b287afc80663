"""A second implementation of everything that the vectors pin down: numpy, `hashlib` and an AES cipher, nothing of this project.

It is the reader of docs/vectors.md who writes a dealer and parties of his own: `formats` and `points` are the formats, `world`
runs all parties and the dealer of one vector at once, the gates follow, `judges` compares opened results with float64.
"""
