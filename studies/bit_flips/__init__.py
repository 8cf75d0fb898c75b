"""How networks with different activations stand flipped bits in their weights and values (docs/faults.md)."""
