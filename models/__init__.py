"""What is trained: Vision Transformers by size, position embeddings, weights files."""
