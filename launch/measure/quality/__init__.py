"""What cache policies cost in quality, measured in plaintext: recall, agreement with the full cache, attention kept."""
