"""What measures images: the Frechet distance, a classifier, pixel distances."""
