"""Images to train and to measure on."""
