"""Fuzzing of the readers: seeded files, valid and damaged, read as a run reads them.

``python -m fuzz --help`` (with ``tests`` on the path), or ``make fuzz``; ``test_fuzz.py`` runs the
short form. A case is what its target makes of a seed, so a target's name and a seed are enough to
have it again.

    made/       seed -> a valid file of each format -> the same file damaged
    slow        the rows that a file must give, the slow and plain way
    reading     the rows that headrace gives, and what every reading must keep to
    check       one case: both, compared
    worker      many cases in a process that may die
    driver      starts workers, names what they died of, keeps the bytes
"""
