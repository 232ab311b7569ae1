"""What every other package may use: errors, files, text, the console, pictures. Nothing of momentum contrast."""
