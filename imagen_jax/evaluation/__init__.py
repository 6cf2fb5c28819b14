"""Evaluation of a cascade: prompts, scorers, figures and reports."""
