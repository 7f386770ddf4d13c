"""How much of a GPU headrace uses: ``headrace bench gpu``, and models for it in torch."""
