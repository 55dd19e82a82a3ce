"""A base model that is ready to run: from settings and a model folder, in the memory that there is."""
