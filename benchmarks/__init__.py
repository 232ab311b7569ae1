"""Scripts that print ratios, each against something named and measured in the same run."""
