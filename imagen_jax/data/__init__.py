"""Pictures with captions: the sources, and the pipeline that orders and batches them."""
