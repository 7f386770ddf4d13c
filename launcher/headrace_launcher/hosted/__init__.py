"""The model code that runs inside Triton; never imported by headrace itself."""
