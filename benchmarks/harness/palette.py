"""Okabe and Ito's colors: distinguished by color-blind readers too."""

BLUE, ORANGE, GREEN, PURPLE, GRAY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#777777"
