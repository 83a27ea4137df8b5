"""Historical data on disk: downloaded from the broker, converted from other people's files.

A *dataset* is a directory of Parquet parts and a ``manifest.json`` that names every part with its
rows, times and SHA-256.  What the manifest does not name does not belong to it.
"""
