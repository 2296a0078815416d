"""Handles → encoders: the only room that imports TensorFlow and TensorFlow Hub.

Importing this package, resolving a local handle, digesting a module's files and reading
what is known of it import neither; probing a module and loading an encoder do.
"""
