"""On a GPU: speed and memory of training, sampling, encoding and scoring at the official shapes, and how it rounds."""
