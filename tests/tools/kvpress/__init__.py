"""What kvpress (NVIDIA) keeps of a prompt beside what this project's policies keep, where both implement the same system."""
