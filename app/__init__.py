"""The doors: command line, demo, doctor. Imports what a command needs when it is called, and calculates nothing."""
