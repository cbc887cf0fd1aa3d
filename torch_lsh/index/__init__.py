"""Which rows of a weight matrix have large inner products with a vector? One contract, several kinds of index."""
