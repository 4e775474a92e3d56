"""Model files: what a header says, what a conversion would write, and the conversion itself.

Importing this package loads no tensor library; only the modules that compute do, and they run in a worker process.
"""
