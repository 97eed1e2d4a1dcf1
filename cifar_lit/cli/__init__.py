"""The command line of fit."""
