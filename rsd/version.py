"""The version, for the package's face, the command line and what a job writes down; hatch reads it here."""

__version__ = "0.1.0"
