"""SPF, DKIM, DMARC and ARC evaluated again from what was captured alone, and compared with what servers wrote.

RFC 7208 (spf.py), RFC 6376 and 8463 (dkim.py), RFC 8617 (dkim.py), RFC 7489 (dmarc.py), RFC 8601 (claims.py).
"""
