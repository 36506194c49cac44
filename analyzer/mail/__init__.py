"""Room 3: events in, timelines out.

Promise: every sighting is in exactly one trace; adding a sighting never splits one; each join, hop and
role carries its evidence; an unseen hop is marked unseen.  This room knows no protocol's grammar.
"""
