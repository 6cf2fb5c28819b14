"""How good the pictures are: readers, scores, reports."""
