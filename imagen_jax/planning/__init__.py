"""Plans runs: compiles their programs for chips that need not be present, and reads the results."""
