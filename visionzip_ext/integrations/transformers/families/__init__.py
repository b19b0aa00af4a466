"""One file for each family of models, and what several of them share."""
