"""Teachers whose weights install from the package index: plug-ins of `advl.teachers`."""
