"""Other systems that run the same decode step beside this one, in environments of their own."""
