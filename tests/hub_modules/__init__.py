"""Makers of tiny SavedModels of every kind of text module on TF Hub.

Each has the names, dtypes, shapes and quirks of the real ones, and weights drawn from a
seed; making one takes a second or two at most. TensorFlow is imported where one is made.
Where it is easy, a function beside the maker says in NumPy what the module returns.
"""
