"""A device that obeys CUDA's rules on a CPU: its tensors say cuda:0, and hold CPU data.

What CUDA refuses is refused, with the line of the project that asked for it: operands on two devices, integer products of
matrices, tensors handed to numpy, shapes that its product of 8-bit integers does not take. What CUDA does is counted by
line: kernels, copies from and to the host, and waits of the host for the device. It says nothing of time, and nothing of
what only a real chip does: streams, memory, rounding of its functions.
"""
