"""Are the vectors of a finished output the model's? ``headrace verify``."""
