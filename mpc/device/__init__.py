"""Computing on a device in few kernels: what is asked of its tensors is written down, and run where it is needed.

`deferred`: the tensors; `recorded`: what may be asked of them; `node`: what is written down; `launches`: how it is cut into
launches; `reference`: a launch as operations of torch; `triton_source`: the same as one kernel; `products`: of matrices,
of which `digits` keeps weights and `int8` multiplies them by many rows.
"""
