"""The `advl` command: parse, call one function of `advl_pipeline`, print.

Commands are grouped in modules by topic and imported when used; `advl --help` imports none of them.
Options are derived from the command's configuration dataclass (`flags.py`); `main.py` maps errors to exit codes.
"""
