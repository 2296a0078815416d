"""Every promise about storage of ``docs/reliability.md``, each with a harness that can fail.

A harness is a module with a function ``run(folder, *, …, seed, bug="") -> Outcome`` and its
counts for the short and for the full form. ``test_reliability.py`` runs the short forms and
shows that each harness reports a bug that is seeded on purpose; ``make reliability`` runs the
full ones and renews the table.
"""
