"""Running a model over sequences: streams, likelihoods, generation, embeddings."""
