"""Room 2: ordered bytes in, typed events out.

Promise: events never raise, come in the order of the dialogue, and depend on nothing but the octets
of the two directions and what their segments say (time, frame, acknowledgement): never on how the
octets were cut into chunks or in which order the chunks of the two directions were fed.
"""
