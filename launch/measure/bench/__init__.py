"""`mpcache bench`: one step of a model of random weights, in real processes, measured on the wire."""
