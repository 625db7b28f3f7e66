"""The Accelerate stage: transfer to a smaller task."""
