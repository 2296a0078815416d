"""Features for other programs, and from them.

`embedcache.exchange.exporting` writes a dataset with its features as NumPy ``.npz``, Parquet,
TFRecord or a folder of Hugging Face ``datasets``; `embedcache.exchange.importing` takes
features from ``.npz`` and from the HDF5 that AllenNLP's ``elmo`` and bilm-tf wrote.
"""
