"""The `advl` command: parse, call one function of `advl_pipeline`, print.

Commands are in modules by what they are about, loaded when one is used; `advl --help` imports none of them.
Options are derived from the command's configuration dataclass (`flags.py`); errors become exit codes in `main.py`.
"""
