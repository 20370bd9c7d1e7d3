"""Studies: grids of (method x shots x seed x test set) planned, run, resumed and gathered.

In: one TOML file. Out: one run folder per cell and a gathered table with paired statistics.
May not know: models. Cells are independent, so they run on several machines and gather later.
"""
