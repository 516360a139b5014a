"""What the user writes: members, shapes, data, recipe."""
