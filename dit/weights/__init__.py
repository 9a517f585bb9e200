"""Files of weights: formats, the names other people's files use, and the autoencoder."""
