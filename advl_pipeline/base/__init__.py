"""Base: what every folder uses and none of it knows an example, a teacher or a student.

In: files, options, processes, arrays. Out: whole writes, checked options, refusals in words, places in a picture.
May not know: any other folder of the package.
"""
