"""The fake hub: it serves models and sets in the files in which they are published, only small.

`server.py` answers as the hub does. `models.py` has the files of each teacher and student by name, `sets.py` those of
each card. What is common to a family stands in the TOML file of its module.
"""
