"""What a run needs, from programs that are compiled for chips that are not there."""
