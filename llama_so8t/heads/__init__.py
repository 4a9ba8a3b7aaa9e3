"""Safety and authority heads: labelled data, hidden states, logistic regression, honest numbers."""
