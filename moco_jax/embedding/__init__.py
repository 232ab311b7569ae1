"""Features of whole sets of images, made under an encoder, kept in one file, and searched."""
