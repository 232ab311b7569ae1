"""Features of whole sets of images on disk: made under an encoder, kept in one file, searched for the nearest."""
