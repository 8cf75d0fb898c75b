"""The demo: a network with a D-ReLU head and its ReLU baseline on real digits, attacked and timed."""
