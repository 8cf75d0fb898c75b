"""Names that configurations ask for, and that tables and pictures show."""

# The columns of a paper-style table, in the paper's order, and their headings.
PAPER = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "apgd_ce": "APGD-CE",
    "apgd_dlr": "APGD-DLR",
    "square": "Square",
    "cw_l2": "CW-L2",
    "auto_attack": "AutoAttack",
}
PICTURES = ("balancer", "bounds", "initial_cap", "trajectory")
