"""Training one stage of a cascade: state, step, checkpoints, loop."""
