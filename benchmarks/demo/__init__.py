"""The demo: a network with a D-ReLU head and its ReLU twin on real digits, attacked and timed."""
