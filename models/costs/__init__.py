"""What a session costs, counted by the program itself on tensors without content."""
