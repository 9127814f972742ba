"""The geometry of embeddings in files, with confidence intervals."""
