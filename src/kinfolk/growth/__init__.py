"""A checkpoint becomes a larger one: named axes, width, depth, Adam moments, and a measured proof."""
