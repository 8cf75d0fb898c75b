"""The smallest configuration file that is right."""

SMALLEST = """
title: T
data: digits
seeds: [0, 1]
models: [dense]
methods: [natural]
attacks: {eps: 0.1}
"""
