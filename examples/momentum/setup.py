"""Compile the strategy against the installed hftpipe: its ``.pxd`` and headers come with it."""
from Cython.Build import cythonize
from setuptools import Extension, setup

import hftpipe

setup(ext_modules=cythonize(
    [Extension("momentum", ["momentum.pyx"], include_dirs=[hftpipe.get_include()],
               extra_compile_args=["-O3"])],
    language_level=3))
