"""Diffusion mathematics in plain jax.numpy: schedules, losses, guidance, thresholding, samplers."""
