"""Room 1: frames in, ordered bytes out.

Promise: every payload octet the capture holds is handed up exactly once, in stream order, or is
accounted for as retransmitted, overlapping (first copy wins) or beyond a bound; what is lost is
stated (`Chunk.gap`).  Nothing here depends on how the input was cut into batches.
"""
