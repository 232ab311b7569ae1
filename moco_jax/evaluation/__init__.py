"""What an encoder is worth: features of images, and scores made from them."""
