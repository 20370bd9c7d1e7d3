"""Studies: plan, run, resume and gather grids of (method x shots x seed x test set).

In: one TOML file. Out: one folder per run and a gathered table with paired statistics.
May not know: models. Runs are independent, so several machines can run them, and they are gathered later.
"""
