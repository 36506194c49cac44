"""Tables in, pictures out.

Promise: a view reads finished tables only; what traffic said is shown, and never obeyed by a terminal,
a browser or a diagram.
"""
