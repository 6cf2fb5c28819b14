"""Device meshes, the placement of arrays on them, and jobs of several processes."""
