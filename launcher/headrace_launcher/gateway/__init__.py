"""The APIs that people already use, in front of a repository's text models."""
