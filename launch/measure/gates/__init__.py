"""What is measured of every non-linear gate: error over its whole declared range, documented bound, rounds and bytes."""
