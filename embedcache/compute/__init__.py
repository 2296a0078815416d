"""Computing what is missing: texts → tokens → rows → the store."""
