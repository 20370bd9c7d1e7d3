"""Base: shared utilities that know nothing of examples, teachers or students.

In: files, options, processes, arrays. Out: atomic writes, checked options, readable errors, picture geometry.
May not know: any other folder of the package.
"""
