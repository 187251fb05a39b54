"""A file for each contender: METHODS, from a method's name to what sets it up on a task.

What is set up, and timed by itself, is what a user makes once of a model and its samples; what it
returns is then run, and timed, and returns the scores.
"""
