"""In place of a model, a GPU and a store: what computes nothing and can be checked by hand."""
