"""The network lab: every role in a Linux network namespace, over links with the delay and bandwidth of a network."""
