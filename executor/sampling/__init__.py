"""From logits to tokens: penalties, filters, counter-based noise and log probabilities."""
