"""Several modules on a part of a corpus first; the whole only for the best of them."""
