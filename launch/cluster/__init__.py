"""Past one machine: dealers as actors of a Ray cluster."""
