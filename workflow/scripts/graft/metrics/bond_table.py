"""Typical bond lengths, from which the stability of QM9-like molecules is counted.

The table of EDM (Hoogeboom et al. 2022, "Equivariant diffusion for molecule generation in 3D"), restricted to the
elements of QM9; the lengths come from wiredchemist.com and chemistry-reference.com, and EDM tuned the margins to make
as many as possible of QM9's own molecules stable.
"""

ATOMIC_NUMBER = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}

VALENCY = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
"""What a stable atom's bond orders sum to."""

MARGIN = {1: 10, 2: 5, 3: 3}
"""Bond order -> pm by which a bond of that order may be longer than its typical length."""

LENGTH = {
    1: {
        ("H", "H"): 74,
        ("H", "C"): 109,
        ("H", "N"): 101,
        ("H", "O"): 96,
        ("H", "F"): 92,
        ("C", "C"): 154,
        ("C", "N"): 147,
        ("C", "O"): 143,
        ("C", "F"): 135,
        ("N", "N"): 145,
        ("N", "O"): 140,
        ("N", "F"): 136,
        ("O", "O"): 148,
        ("O", "F"): 142,
        ("F", "F"): 142,
    },
    2: {
        ("C", "C"): 134,
        ("C", "N"): 129,
        ("C", "O"): 120,
        ("N", "N"): 125,
        ("N", "O"): 121,
        ("O", "O"): 121,
    },
    3: {
        ("C", "C"): 120,
        ("C", "N"): 116,
        ("C", "O"): 113,
        ("N", "N"): 110,
    },
}
"""Bond order -> pair of elements -> typical length in pm; a pair that is left out has no bond of that order."""
