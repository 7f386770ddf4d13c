"""What runs inside Triton: ``model.py`` there, the engines here too where they are measured."""
