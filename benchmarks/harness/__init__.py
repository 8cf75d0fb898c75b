"""What all benchmarks share: how work is timed, recorded, printed and drawn."""
