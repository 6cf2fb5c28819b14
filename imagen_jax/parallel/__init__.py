"""Device meshes and how arrays lie on them."""
