"""Okabe and Ito's colours: told apart by colour-blind readers too."""

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#777777"
