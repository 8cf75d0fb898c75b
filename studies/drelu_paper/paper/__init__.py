"""What the paper prints: its tables as data. README.md says how they were taken, and what is wrong in them."""
