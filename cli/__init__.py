"""The `advl` command: parse, call one function of `advl_pipeline`, print.

Each command lives in a module of its own, loaded when it is used; `advl --help` imports none of them.
Options are derived from the command's configuration dataclass (`options.py`); errors become exit codes in `main.py`.
"""
