"""What a cache system is put together of: who scores tokens, how many stay, who always stays, and when tokens go."""
