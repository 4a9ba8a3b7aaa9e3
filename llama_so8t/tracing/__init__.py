"""Head probabilities at every position of a text: read from the runtime, drawn as a page or a picture, or as JSON."""
