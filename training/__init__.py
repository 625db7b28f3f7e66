"""Step mathematics and process facts that both training loops use."""
